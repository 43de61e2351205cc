"""A node's supervisor with a real launcher's end: the variables that hold API keys reach the driver, and not Ray."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
import yaml

from medssr_dist.launch import channel, supervisor
from medssr_dist.launch.attempts import Attempt
from medssr_dist.launch.channel import Hub
from medssr_dist.launch.supervisor import Supervisor

LOOPBACK = "127.0.0.1"
VARIABLE, KEY = "PLANTED_KEY_OF_A_TEST", "planted-0123456789abcdef"


@pytest.fixture
def config(tmp_path, repo):
    """A config whose API key is in a variable, beside one that has none."""
    endpoints = [{"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key": f"${{{VARIABLE}}}"}]
    file = tmp_path / "config.yaml"
    base = str(repo / "configs" / "smollm2_cpu.yaml")
    file.write_text(yaml.safe_dump({"extends": base, "synthesis": {"endpoints": endpoints}}))
    return file


def print_environment(file) -> list[str]:
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    return [sys.executable, "-S", "-c", code, str(file)]


async def wait_for_end(hub: Hub, name: str) -> None:
    while (event := await hub.next(60)) is None or event.ended != name:
        assert event is not None, f"{name} does not end"


async def test_keys_reach_the_driver_and_not_ray(config, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(supervisor, "build_ray_command", lambda *_: print_environment(tmp_path / "ray"))
    hub = Hub(lambda who, text: None)
    async with hub.listen(LOOPBACK, "token"):
        host, port = hub.address.split(":")
        link = await channel.connect(host, int(port), "token")
        attempt = Attempt.begin(tmp_path / "run")
        node = Supervisor(link, "n1", 7, attempt.paths, tmp_path)
        node.say_hello()
        serving = asyncio.create_task(node.serve())
        await hub.next(5)
        hub.send("n1", {"do": "layout", "config": str(config), "overrides": [], "nodes": 1, "step": "run"})
        layout = await hub.next(60)
        assert layout.data["secrets"] == [VARIABLE]
        assert KEY not in json.dumps(layout.data)
        hub.send("n1", {"do": "prepare", "hosts": ["n1"], "slots": 1, "secrets": layout.data["secrets"]})
        hub.send("n1", {"do": "ray", "head": None})
        await wait_for_end(hub, "ray")
        hub.start("n1", "driver", print_environment(tmp_path / "driver"))
        await wait_for_end(hub, "driver")
        hub.send_all({"do": "stop"})
        await serving
    assert json.loads((tmp_path / "driver").read_text())[VARIABLE] == KEY
    assert VARIABLE not in json.loads((tmp_path / "ray").read_text())
    assert VARIABLE not in os.environ
