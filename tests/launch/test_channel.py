"""Connections between the launcher and the nodes: messages, their ends, and strangers at the launcher's port."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict

import pytest

from medssr_dist.launch import channel
from medssr_dist.launch.channel import (
    MESSAGE_BYTES,
    AuthenticationFailed,
    ConnectionLost,
    Hub,
    NodeInfo,
    NodeLost,
)

LOOPBACK = "127.0.0.1"
NODE = NodeInfo("n1", "10.0.0.1", gcs="10.0.0.1:10001", cpus=4, gpus=0, memory_mib=8000)


@pytest.fixture
async def hub():
    """A listening hub, and the lines it has logged."""
    logged: list[tuple[str, str]] = []
    hub = Hub(lambda who, text: logged.append((who, text)))
    async with hub.listen(LOOPBACK, "secret"):
        yield hub, logged


async def _connect(hub: Hub, token: str = "secret") -> channel.Channel:
    host, port = hub.address.split(":")
    return await channel.connect(host, int(port), token)


async def test_messages_pass_both_ways_and_an_end_is_noticed(hub):
    hub, logged = hub
    link = await _connect(hub)
    node = NodeInfo("n1", "10.0.0.1", gcs="10.0.0.1:10001", cpus=4, gpus=0, memory_mib=8000)
    link.send({"event": "hello"} | asdict(node))
    assert (await hub.next(5)).kind == "hello" and hub.nodes == {"n1": node}
    hub.start("n1", "driver", ["true"], {"KEY": "value"})
    assert await link.receive() == {"do": "start", "name": "driver", "command": ["true"], "env": {"KEY": "value"}}
    link.send({"event": "line", "name": "driver", "text": "half done"})
    assert (await hub.next(5)).is_line("driver", "half")
    assert ("n1 driver", "half done") in logged
    await link.close()
    with pytest.raises(NodeLost, match=r"node n1 \(10.0.0.1\) is lost: its process has ended"):
        await hub.next(5)


async def test_missing_heartbeats_are_a_lost_connection(monkeypatch):
    """The other end is alive but sends no heartbeat, as when the network link is cut."""

    async def say_nothing(reader, writer):
        await channel.accept(reader, writer, "secret")
        await reader.read()
        writer.close()

    monkeypatch.setattr(channel, "SILENCE_S", 0.05)
    server = await asyncio.start_server(say_nothing, LOOPBACK, 0)
    link = await channel.connect(*server.sockets[0].getsockname(), "secret")
    with pytest.raises(ConnectionLost, match="not heard from"):
        await link.receive()
    await link.close()
    server.close()


async def test_a_connection_without_the_token_is_refused(hub):
    hub, logged = hub
    with pytest.raises(AuthenticationFailed):
        await _connect(hub, "guess")
    assert not hub.nodes
    assert any("without this job's token" in text for _, text in logged)


@pytest.mark.parametrize(
    "garbage",
    [
        "aa é\n".encode(),
        b"\xff\xfe\n",
        b"\n",
        b"a b c" * 40,
        b"x" * 2**21,
        b"\0 " * 60,
        b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n" + b" " * 98,
        b"a" * 32 + b" " + b"b" * 64 + b"\n",
    ],
    ids=["not ASCII", "not UTF-8", "empty line", "words", "2 MiB", "NUL", "HTTP", "wrong proof"],
)
async def test_a_strangers_garbage_ends_its_connection_alone(hub, garbage, monkeypatch):
    hub, logged = hub
    monkeypatch.setattr(channel, "_PROOF_S", 0.5)
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    reader, writer = await asyncio.open_connection(*hub.address.split(":"))
    await reader.readline()
    writer.write(garbage)
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    link = await _connect(hub)
    link.send({"event": "hello"} | asdict(NODE))
    assert (await hub.next(5)).kind == "hello"
    assert not faults
    assert any("without this job's token" in text for _, text in logged)
    await link.close()


async def test_open_connections_without_a_proof_do_not_pile_up(hub):
    """A stranger who opens many connections and says nothing keeps no node out, and cannot use up all open files."""
    hub, _ = hub
    silent = [await asyncio.open_connection(*hub.address.split(":")) for _ in range(3 * channel._MOST_UNPROVEN)]
    link = await asyncio.wait_for(_connect(hub), 10)
    link.send({"event": "hello"} | asdict(NODE))
    assert (await hub.next(5)).kind == "hello"
    assert sum(map(len, hub._unproven.values())) <= channel._MOST_UNPROVEN
    await link.close()
    for _, writer in silent:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (json.dumps({"event": "ended", "tail": ["x" * (MESSAGE_BYTES + 10)]}), "more than 1048576 bytes"),
        ("{oops", "malformed message"),
        ("[1]", "malformed message"),
        ('{"a": 1}', "malformed message"),
        ('{"event": 3}', "malformed message"),
        ("[" * 100_000, "malformed message"),
        ('{"event": "line"}', "lacks a field"),
    ],
    ids=["too long", "not JSON", "list", "no event", "number", "deep", "no text"],
)
async def test_a_node_that_sends_a_bad_message_is_lost(hub, message, reason):
    hub, _ = hub
    link = await _connect(hub)
    link.send({"event": "hello"} | asdict(NODE))
    assert (await hub.next(5)).kind == "hello"
    link._writer.write(message.encode() + b"\n")
    with pytest.raises(NodeLost, match=f"node n1 .* is lost: .*{reason}"):
        await hub.next(5)
    assert hub.connected == ()
    await link.close()


async def test_a_message_that_is_too_long_is_not_sent(hub):
    hub, _ = hub
    link = await _connect(hub)
    with pytest.raises(ValueError, match="a message of .* bytes"):
        link.send({"event": "line", "text": "x" * MESSAGE_BYTES})
    await link.close()
