"""JSON messages over TCP between launcher and node supervisors, each end proving first that it has the token.

Either end sends a beat every few seconds, so a cut link is noticed although TCP itself stays silent about it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

BEAT_S = 5.0
SILENCE_S = 30.0  # six beats: a busy machine is no lost one
LIMIT = 2**20  # bytes of one message


class AuthenticationFailed(Exception):
    """The other end does not have the job's token."""


class ConnectionLost(Exception):
    """The other end is gone; the message says how that was noticed."""


class Channel:
    """One connection, after both ends have shown the token. Made by `connect` or `accept`."""

    def __init__(self, reader: StreamReader, writer: StreamWriter):
        self._reader, self._writer = reader, writer

    @property
    def own_ip(self) -> str:
        return self._writer.get_extra_info("sockname")[0]

    def send(self, message: dict) -> None:
        """Queue a message; a lost connection is reported by `receive`."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict:
        """The next message that is not a beat. Raises Lost."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), SILENCE_S)
            except asyncio.TimeoutError:
                raise ConnectionLost(
                    f"not heard from for {SILENCE_S:.0f} s: the network link or the node is down"
                ) from None
            except OSError as error:
                raise ConnectionLost(f"connection broken ({error.strerror or error})") from None
            if not line.endswith(b"\n"):
                raise ConnectionLost("its process has ended")
            if message := json.loads(line):
                return message

    async def beat(self) -> None:
        """Send beats until cancelled."""
        while True:
            self.send({})
            await asyncio.sleep(BEAT_S)

    async def close(self) -> None:
        """Send what is queued and close."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), BEAT_S)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()


async def connect(host: str, port: int, token: str) -> Channel:
    """Raises Refused for a wrong token, OSError where nobody listens."""
    reader, writer = await asyncio.open_connection(host, port, limit=LIMIT)
    challenge = await reader.readline()
    own = os.urandom(16).hex()
    _write_line(writer, f"{own} {_proof(token, 'node', challenge.decode().strip())}")
    answer = await reader.readline()
    if not hmac.compare_digest(answer.decode().strip(), _proof(token, "launcher", own)):
        writer.close()
        raise AuthenticationFailed(f"{host}:{port} does not know this job's token")
    return Channel(reader, writer)


async def accept(reader: StreamReader, writer: StreamWriter, token: str) -> Channel:
    """The launcher's side of `connect`. Raises Refused."""
    own = os.urandom(16).hex()
    _write_line(writer, own)
    try:
        theirs, proof = (await asyncio.wait_for(reader.readline(), SILENCE_S)).decode().split()
    except (ValueError, asyncio.TimeoutError):
        theirs, proof = "", ""
    if not hmac.compare_digest(proof, _proof(token, "node", own)):
        writer.close()
        raise AuthenticationFailed("a connection without this job's token was closed")
    _write_line(writer, _proof(token, "launcher", theirs))
    return Channel(reader, writer)


def _write_line(writer: StreamWriter, text: str) -> None:
    writer.write(text.encode() + b"\n")


def _proof(token: str, who: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"{who} {nonce}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Event:
    """Something that happened on `node`: `kind` and what comes with it."""

    node: str
    kind: str
    data: dict = field(default_factory=dict)

    @property
    def ended(self) -> str | None:
        """Name of the component that ended."""
        return self.data["name"] if self.kind == "ended" else None

    def is_line(self, component: str, text: str) -> bool:
        """Whether `component` printed a line with `text` in it."""
        return self.kind == "line" and self.data["name"] == component and text in self.data["text"]


DRIVER = "driver"
_UNLOGGED = ("ray",)  # says nothing that a reader needs; what it ended with is told in the reason


class NodeLost(Exception):
    """A node, or what the job needs of it, is gone; the message names it."""

    def __init__(self, node: str, reason: str):
        super().__init__(reason)
        self.node = node


class Hub:
    """Accepts the supervisors of the job's nodes; whoever lacks the token is closed."""

    def __init__(self, log: Callable[[str, str], None]):
        self._log = log
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._links: dict[str, Channel] = {}
        self.nodes: dict[str, dict] = {}  # name -> what its hello said

    @asynccontextmanager
    async def listen(self, ip: str, token: str) -> AsyncIterator[None]:
        """Accept connections for the duration of the block, at `address`."""
        server = await asyncio.start_server(lambda *pair: self._serve(*pair, token), ip, 0, limit=LIMIT)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        try:
            link = await accept(reader, writer, token)
        except AuthenticationFailed as refused:
            self._log("launcher", f"{refused} (from {writer.get_extra_info('peername')[0]})")
            return
        beats = asyncio.create_task(link.beat())
        name = None
        try:
            hello = await link.receive()
            name = hello["name"]
            self._links[name], self.nodes[name] = link, hello
            self.put(Event(name, hello["event"], hello))
            while True:
                self._received(name, await link.receive())
        except ConnectionLost as lost:
            if self._links.pop(name, None):
                self.put(Event(name, "lost", {"why": str(lost)}))
        finally:
            beats.cancel()
            await link.close()

    def _received(self, name: str, message: dict) -> None:
        if message["event"] == "line" and message["name"] not in _UNLOGGED:
            self._log(f"{name} {message['name']}", message["text"])
        self.put(Event(name, message["event"], message))

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    async def next(self, within_s: float) -> Event | None:
        """The next event; None after `within_s` seconds. Raises NodeLost for a node that is gone."""
        try:
            event = await asyncio.wait_for(self._queue.get(), max(0.0, within_s))
        except asyncio.TimeoutError:
            return None
        if event.kind == "lost":
            raise NodeLost(event.node, f"node {self.describe(event.node)} is lost: {event.data['why']}")
        return event

    @property
    def connected(self) -> tuple[str, ...]:
        return tuple(self._links)

    def describe(self, name: str) -> str:
        return f"{name} ({self.nodes[name]['ip']})"

    def send(self, name: str, message: dict) -> None:
        """To a node that is gone already, nothing is sent."""
        if name in self._links:
            self._links[name].send(message)

    def send_all(self, message: dict) -> None:
        for link in self._links.values():
            link.send(message)

    def start(self, name: str, component: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.send(name, {"do": "start", "name": component, "command": list(command), "env": env or {}})

    async def until(self, wanted: Callable[[Event], bool], node: str, within_s: float) -> None:
        """Pass over events until one is wanted, `node` is gone or `within_s` seconds have passed."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._pass_over(wanted, node), within_s)

    async def _pass_over(self, wanted: Callable[[Event], bool], node: str) -> None:
        while node in self._links and not wanted(await self._queue.get()):
            pass

    async def until_empty(self, within_s: float) -> None:
        """Pass over events until every supervisor has closed its connection or is lost."""
        await asyncio.gather(*(self.until(lambda event: False, name, within_s) for name in list(self._links)))
