"""`medssr bench NAME` calls the function of that benchmark."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from medssr_dist import cli
from medssr_dist.bench.synthesis import run as synthesis_run
from medssr_dist.commands.tool_arguments import BENCHES
from medssr_dist.errors import EXIT_BAD_INPUT

MODULES = {
    "synthesis": "synthesis.run",
    "voting": "voting.run",
    "answers": "answers.run",
    "guard": "guard.run",
    "kernels": "kernels.run",
    "labels": "labels.run",
    "method": "method.run",
    "step": "step.run",
    "rollouts": "rollouts.run",
    "training": "training.run",
    "update": "training.update",
}


@pytest.mark.parametrize("name", MODULES)
def test_the_command_calls_its_benchmark(name, monkeypatch):
    calls = []
    module = importlib.import_module(f"medssr_dist.bench.{MODULES[name]}")
    monkeypatch.setattr(module, f"bench_{name}", lambda path, quick: calls.append((path, quick)))
    assert cli.main(["bench", name, "--json", "a.json", "--quick"]) == 0
    assert calls == [(Path("a.json"), True)]


@pytest.mark.parametrize("name", MODULES)
def test_a_place_where_no_result_can_be_is_refused_at_once(name, monkeypatch, tmp_path, capsys):
    module = importlib.import_module(f"medssr_dist.bench.{MODULES[name]}")
    monkeypatch.setattr(module, f"bench_{name}", lambda path, quick: pytest.fail("it has begun"))
    assert cli.main(["bench", name, "--json", str(tmp_path)]) == EXIT_BAD_INPUT
    assert f"--json {tmp_path} is a folder" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["bench", name, "--json", str(file / "new" / "a.json")]) == EXIT_BAD_INPUT
    assert f"{file} is a file, not a folder" in capsys.readouterr().err


def test_the_command_has_a_case_for_every_benchmark():
    assert set(MODULES) == set(BENCHES)


def test_the_python_of_other_clients_is_passed_on(monkeypatch):
    calls = []
    monkeypatch.setattr(synthesis_run, "bench_synthesis", lambda path, quick, peers_python: calls.append(peers_python))
    assert cli.main(["bench", "synthesis", "--json", "a.json", "--peers-python", "/x/python"]) == 0
    assert calls == [Path("/x/python")]
