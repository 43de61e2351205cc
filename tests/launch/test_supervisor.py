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
from medssr_dist.launch.launch_plan import LaunchPlan
from medssr_dist.launch.launcher import AttemptEnded, Launcher
from medssr_dist.launch.slurm import SlurmJob
from medssr_dist.launch.supervisor import Supervisor
from medssr_dist.launch.timings import Timings

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


async def connect(hub: Hub, tmp_path) -> Supervisor:
    host, port = hub.address.split(":")
    link = await channel.connect(host, int(port), "token")
    return Supervisor(link, "n1", 7, Attempt.begin(tmp_path / "run").paths, tmp_path)


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
        node = await connect(hub, tmp_path)
        node.say_hello()
        serving = asyncio.create_task(node.serve())
        await hub.next(5)
        hub.send("n1", {"do": "layout", "config": str(config), "overrides": [], "nodes": 1, "step": "run"})
        layout = await hub.next(60)
        assert VARIABLE in layout.data["secrets"]
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


async def test_a_failure_is_sent_before_the_connection_ends(tmp_path, monkeypatch):
    """The supervisor's log is written later, and on another way: the launcher may read it too early."""
    monkeypatch.setenv("PYTHONPATH", "/old/site")

    async def fail(self, **message) -> None:
        raise ImportError("cannot import name 'ValidationError' from 'pydantic'")

    monkeypatch.setattr(Supervisor, "do_layout", fail)
    attempt = Attempt.begin(tmp_path)
    launcher = Launcher(LaunchPlan(tmp_path), SlurmJob(7, ("n1",), "n1"), attempt, Timings(attempt, 0.0))
    async with launcher.hub.listen(LOOPBACK, "token"):
        serving = asyncio.create_task(supervisor._serve(await connect(launcher.hub, tmp_path)))
        await launcher._next(5)
        launcher.hub.send("n1", {"do": "layout"})
        with pytest.raises(AttemptEnded, match=r"the supervisor failed: ImportError.* \(PYTHONPATH=/old/site comes"):
            await launcher._next(5)
        with pytest.raises(ImportError):
            await serving
