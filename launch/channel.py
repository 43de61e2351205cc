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

BEAT_S = 5.0
SILENCE_S = 30.0  # six beats: a busy machine is no lost one
LIMIT = 2**20  # bytes of one message


class Refused(Exception):
    """The other end does not have the job's token."""


class Lost(Exception):
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
                raise Lost(f"not heard from for {SILENCE_S:.0f} s: the network link or the node is down") from None
            except OSError as error:
                raise Lost(f"connection broken ({error.strerror or error})") from None
            if not line.endswith(b"\n"):
                raise Lost("its process has ended")
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
        raise Refused(f"{host}:{port} does not know this job's token")
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
        raise Refused("a connection without this job's token was closed")
    _write_line(writer, _proof(token, "launcher", theirs))
    return Channel(reader, writer)


def _write_line(writer: StreamWriter, text: str) -> None:
    writer.write(text.encode() + b"\n")


def _proof(token: str, who: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"{who} {nonce}".encode(), hashlib.sha256).hexdigest()
