"""JSON messages over TCP between the launcher and the node supervisors.

Each end first proves that it has the job's token, without sending it. Then each end sends a heartbeat every few
seconds, because TCP alone does not notice a broken network link. Whoever has no token can do little: connections
without a proof are few, short and of fixed length. A message that is too long or malformed ends its connection, and
the node is lost for that reason: no message vanishes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

HEARTBEAT_S = 5.0
SILENCE_S = 30.0  # six heartbeats: a busy node may miss some
MESSAGE_BYTES = 2**20  # the longest message
_PROOF_S = 10.0  # how long a connection may take to prove that it has the token
_PROOF_BYTES = 32 + 1 + 64 + 1  # nonce, space, HMAC and newline
_MOST_UNPROVEN = 64  # connections from one address; the oldest is closed for a new one
DRIVER = "driver"  # the component that runs `medssr STEP`
_NOT_LOGGED = ("ray",)  # its output is long and of no use to a reader; its last lines are in the reason if it fails


class AuthenticationFailed(Exception):
    """The other end does not have the job's token."""


class ConnectionLost(Exception):
    """The other end is gone; the message says how that was noticed."""


class NodeLost(Exception):
    """A node, or its part of Ray, is gone; the message names the node."""

    def __init__(self, node: str, reason: str):
        super().__init__(reason)
        self.node = node


class Channel:
    """One connection, after both ends have proved that they have the token. `connect` and `accept` make it."""

    def __init__(self, reader: StreamReader, writer: StreamWriter):
        self._reader, self._writer = reader, writer

    @property
    def own_ip(self) -> str:
        """The address of this end."""
        return str(self._writer.get_extra_info("sockname")[0])

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message. If the connection is lost, `receive` reports it. Raises ValueError if it is too long."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(line)} bytes; the longest has {MESSAGE_BYTES}: {line[:80]!r} ...")
        if not self._writer.is_closing():
            self._writer.write(line)

    async def receive(self) -> dict[str, Any]:
        """Return the next message that is not a heartbeat. Raises ConnectionLost."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), SILENCE_S)
            except asyncio.TimeoutError:
                silent = f"not heard from for {SILENCE_S:.0f} s: the network link or the node is down"
                raise ConnectionLost(silent) from None
            except OSError as error:
                raise ConnectionLost(f"connection broken ({error.strerror or error})") from None
            except ValueError:  # of readline: no newline within the limit
                raise ConnectionLost(f"it sent a message of more than {MESSAGE_BYTES} bytes") from None
            if not line.endswith(b"\n"):
                raise ConnectionLost("its process has ended")
            if message := _parse_message(line):
                return message

    async def send_heartbeats(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            self.send({})
            await asyncio.sleep(HEARTBEAT_S)

    async def close(self) -> None:
        """Send the queued messages and close."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), HEARTBEAT_S)
        except (OSError, asyncio.TimeoutError):
            self._writer.transport.abort()


async def connect(host: str, port: int, token: str) -> Channel:
    """Connect a supervisor to its launcher. Raises AuthenticationFailed for a wrong token, OSError if nobody listens.

    Each end sends a random nonce and answers the other's nonce with an HMAC under the token.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=MESSAGE_BYTES)
    challenge = await reader.readline()
    own = os.urandom(16).hex().encode()
    _write_line(writer, own + b" " + _prove(token, "node", challenge.strip()))
    answer = await reader.readline()
    if not hmac.compare_digest(answer.strip(), _prove(token, "launcher", own)):
        writer.close()
        raise AuthenticationFailed(f"{host}:{port} does not know this job's token")
    return Channel(reader, writer)


async def accept(reader: StreamReader, writer: StreamWriter, token: str) -> Channel:
    """Do the launcher's side of `connect`. Raises AuthenticationFailed for a wrong token."""
    own = os.urandom(16).hex().encode()
    _write_line(writer, own)
    try:
        theirs, proof = (await asyncio.wait_for(reader.readexactly(_PROOF_BYTES), _PROOF_S)).split()
    except (ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
        theirs = proof = b""
    if not hmac.compare_digest(proof, _prove(token, "node", own)):
        writer.transport.abort()
        raise AuthenticationFailed("a connection without this job's token was closed")
    _write_line(writer, _prove(token, "launcher", theirs))
    return Channel(reader, writer)


def _parse_message(line: bytes) -> dict[str, Any]:
    """Return the message of a line; {} is a heartbeat. Raises ConnectionLost if it is no message of ours."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or (message and not isinstance(message.get("event", message.get("do")), str)):
        raise ConnectionLost(f"it sent a malformed message: {line[:80]!r}")
    return message


def _write_line(writer: StreamWriter, text: bytes) -> None:
    writer.write(text + b"\n")


def _prove(token: str, sender: str, nonce: bytes) -> bytes:
    return hmac.new(token.encode(), sender.encode() + b" " + nonce, hashlib.sha256).hexdigest().encode()


@dataclass(frozen=True)
class NodeInfo:
    """What a supervisor reports about its node when it connects.

    Example: NodeInfo(name="n1", ip="10.0.0.2", gcs="10.0.0.2:10501", cpus=64, gpus=8, memory_mib=500000)

    Attributes:
        gcs: address at which Ray's control service would listen on this node.
    """

    name: str
    ip: str
    gcs: str
    cpus: int
    gpus: int
    memory_mib: int


@dataclass(frozen=True)
class Event:
    """Something that happened on a node.

    Example: Event("n1", "ended", {"event": "ended", "name": "driver", "code": 0, "tail": ["done"]})
    """

    node: str
    kind: str
    data: dict[str, Any] = field(default_factory=dict)  # the supervisor's message

    @property
    def ended(self) -> str | None:
        """Name of the component that ended; None for another kind of event."""
        return str(self.data["name"]) if self.kind == "ended" else None

    def is_line(self, component: str, text: str) -> bool:
        """Return whether `component` printed a line that contains `text`."""
        return self.kind == "line" and self.data["name"] == component and text in self.data["text"]


class Hub:
    """The launcher's end of all connections: it accepts the supervisors and queues their events.

    Attributes:
        nodes: name -> what the node's supervisor has reported.
    """

    def __init__(self, log: Callable[[str, str], None]):
        self._log = log
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._links: dict[str, Channel] = {}
        self._unproven: dict[str, deque[StreamWriter]] = {}  # address -> its connections without a proof, oldest first
        self.nodes: dict[str, NodeInfo] = {}

    @asynccontextmanager
    async def listen(self, ip: str, token: str) -> AsyncIterator[None]:
        """Accept connections at `address` for the duration of the block."""
        server = await asyncio.start_server(
            lambda reader, writer: self._serve(reader, writer, token), ip, 0, limit=MESSAGE_BYTES
        )
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter, token: str) -> None:
        try:
            link = await self._accept(reader, writer, token)
        except AuthenticationFailed as refused:
            self._log("launcher", f"{refused} (from {_address_of(writer)})")
            return
        heartbeats = asyncio.create_task(link.send_heartbeats())
        name = ""
        try:
            first = await link.receive()
            name = str(first["name"])
            self._links[name] = link
            if first["event"] == "hello":
                self.nodes[name] = NodeInfo(**{key: value for key, value in first.items() if key != "event"})
            self.put(Event(name, first["event"], first))
            while True:
                self._receive(name, await link.receive())
        except ConnectionLost as lost:
            self._lose(name, str(lost))
        except (KeyError, TypeError) as error:  # an authenticated node, so a bug: its node is lost, by name
            self._lose(name, f"its message lacks a field or has a wrong one ({error})")
        finally:
            heartbeats.cancel()
            await link.close()

    async def _accept(self, reader: StreamReader, writer: StreamWriter, token: str) -> Channel:
        """Accept a connection. Of many from one address without a proof, only the newest are kept."""
        waiting = self._unproven.setdefault(_address_of(writer), deque())
        if len(waiting) >= _MOST_UNPROVEN:
            waiting.popleft().transport.abort()
        waiting.append(writer)
        try:
            return await accept(reader, writer, token)
        finally:
            with suppress(ValueError):
                waiting.remove(writer)
            if not waiting:
                self._unproven.pop(_address_of(writer), None)

    def _lose(self, name: str, why: str) -> None:
        if name and self._links.pop(name, None):
            self.put(Event(name, "lost", {"why": why}))

    def _receive(self, name: str, message: dict[str, Any]) -> None:
        if message["event"] == "line" and message["name"] not in _NOT_LOGGED:
            self._log(f"{name} {message['name']}", message["text"])
        self.put(Event(name, message["event"], message))

    def put(self, event: Event) -> None:
        """Queue an event of the launcher's own node."""
        self._queue.put_nowait(event)

    async def next(self, within_s: float) -> Event | None:
        """Return the next event, or None after `within_s` seconds. Raises NodeLost if a node is gone."""
        try:
            event = await asyncio.wait_for(self._queue.get(), max(0.0, within_s))
        except asyncio.TimeoutError:
            return None
        if event.kind == "lost":
            raise NodeLost(event.node, f"node {self.describe(event.node)} is lost: {event.data['why']}")
        return event

    @property
    def connected(self) -> tuple[str, ...]:
        """Names of the nodes whose supervisors are connected."""
        return tuple(self._links)

    def describe(self, name: str) -> str:
        """Return a node's name and address. Example: "n2 (10.0.0.3)"."""
        return f"{name} ({self.nodes[name].ip})" if name in self.nodes else name

    def send(self, name: str, message: dict[str, Any]) -> None:
        """Send a message to a node; does nothing if the node is gone."""
        if name in self._links:
            self._links[name].send(message)

    def send_all(self, message: dict[str, Any]) -> None:
        """Send a message to every connected node."""
        for link in self._links.values():
            link.send(message)

    def start(self, name: str, component: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        """Start a component on a node; `env` is added to the node's environment."""
        self.send(name, {"do": "start", "name": component, "command": list(command), "env": env or {}})

    async def skip_until(self, is_wanted: Callable[[Event], bool], node: str, within_s: float) -> None:
        """Drop events until one is wanted, `node` is gone or `within_s` seconds have passed."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._skip(is_wanted, node), within_s)

    async def _skip(self, is_wanted: Callable[[Event], bool], node: str) -> None:
        while node in self._links and not is_wanted(await self._queue.get()):
            pass

    async def skip_until_disconnected(self, within_s: float) -> None:
        """Drop events until every supervisor has closed its connection or is lost."""
        links = list(self._links)
        await asyncio.gather(*(self.skip_until(lambda event: False, name, within_s) for name in links))


def _address_of(writer: StreamWriter) -> str:
    return str((writer.get_extra_info("peername") or ("?",))[0])
