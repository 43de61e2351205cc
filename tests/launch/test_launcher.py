"""How the launcher names what went wrong before a driver runs; tests/slurm runs it whole on a real Slurm."""

from __future__ import annotations

import pytest

from medssr_dist.errors import EXIT_BAD_INPUT
from medssr_dist.launch.attempts import Attempt
from medssr_dist.launch.channel import Event
from medssr_dist.launch.launch_plan import LaunchPlan
from medssr_dist.launch.launcher import AttemptEnded, Launcher
from medssr_dist.launch.slurm import SlurmJob
from medssr_dist.launch.timings import Timings


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    attempt = Attempt.begin(tmp_path)
    return Launcher(LaunchPlan(tmp_path), SlurmJob(7, ("n1", "n2"), "n1"), attempt, Timings(attempt, 0.0))


async def test_a_node_under_another_name_is_named_at_once(launcher):
    """A container with --cleanenv hides Slurm's name of the node, so that it connects under its host name."""
    launcher.hub.put(Event("gpu-7.example.org", "hello"))
    with pytest.raises(AttemptEnded, match=r"as 'gpu-7.example.org', which is not a node of this job") as end:
        await launcher._next(5)
    assert end.value.exit.code == EXIT_BAD_INPUT


async def test_packages_of_the_home_folder_are_named(launcher, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    log = launcher.attempt.paths.component_log("n2", "supervisor")
    where = '  File "/home/me/.local/lib/python3.11/site-packages/pydantic/main.py", line 3'
    log.write_text(f"Traceback (most recent call last):\n{where}\nAttributeError: no attribute 'Field'\n")
    launcher.hub.put(Event("n1", "srun", {"code": 1}))
    with pytest.raises(AttemptEnded, match=r"no attribute 'Field' \(packages in ~/.local .* PYTHONNOUSERSITE=1\)"):
        await launcher._next(1.0)


async def test_an_import_error_of_a_supervisor_is_the_reason(launcher, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/old/site")
    log = launcher.attempt.paths.component_log("n2", "supervisor")
    log.write_text("Traceback (most recent call last):\n  ...\nImportError: cannot import name 'Field'\n")
    launcher.hub.put(Event("n1", "srun", {"code": 1}))
    with pytest.raises(AttemptEnded, match=r"cannot import name 'Field' \(PYTHONPATH=/old/site comes before"):
        await launcher._next(5)
