"""A stage on the real stack that is stopped, killed, or runs out of time: the same command resumes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl
from medssr_dist.errors import EXIT_STOPPED
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import StepMetrics, read_metrics
from medssr_dist.training.weights.checkpoints import Checkpoint, list_checkpoints

STEPS = 6


@pytest.fixture
def command(tiny_config, tmp_path) -> Callable[..., list[str]]:
    """Return a function that makes the arguments of `medssr train`: STEPS steps of stage 2 on questions of letters."""
    rng = random.Random(1)
    data = tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(20)))

    def arguments(run: Path, *overrides: str) -> list[str]:
        return [
            "train",
            "--config",
            str(tiny_config),
            "--run-dir",
            str(run),
            "training.stage1.enabled=false",
            f"training.stage2.data=[{data}]",
            f"training.stage2.steps={STEPS}",
            "training.stage2.learning_rate=1e-3",
            "training.stage2.drop_zero_variance=false",
            *overrides,
        ]

    return arguments


def start(arguments: list[str], log: Path, **env: str) -> tuple[subprocess.Popen, Path]:
    command = [sys.executable, "-m", "medssr_dist.cli", *arguments]
    with open(log, "w") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | env), log


def until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def read_steps(run: Path) -> list[StepMetrics]:
    return read_metrics(RunPaths(run).stage("stage2").metrics)


def list_saved(run: Path) -> list[Checkpoint]:
    return list_checkpoints(RunPaths(run).stage("stage2").checkpoints)


@pytest.mark.slow
def test_a_stage_resumes_after_kill_signal_and_deadline(medssr, command, tmp_path):
    run = tmp_path / "run"
    arguments = command(run, "training.stage2.export_steps=2", "training.trackers=[tensorboard]")
    paths = RunPaths(run).stage("stage2")

    killed, log = start([*arguments, "training.ranks_per_node=1"], tmp_path / "killed")
    until(lambda: len(list_saved(run)) >= 1 and len(read_steps(run)) >= 2, killed, log)
    killed.kill()
    killed.wait()
    kept = [step for step in read_steps(run) if step.step <= list_saved(run)[-1].step]

    # From now on two ranks train, and only the signal leads to a save.
    arguments.append("training.stage2.save_steps=1000")
    since = time.time()
    asked, log = start(arguments, tmp_path / "asked")
    until(lambda: any(step.time > since for step in read_steps(run)), asked, log)
    asked.send_signal(signal.SIGUSR1)
    assert asked.wait(300) == EXIT_STOPPED, log.read_text()[-4000:]
    before = read_steps(run)
    done = before[-1].step
    assert before[: len(kept)] == kept
    assert f"stage2 stopped after step {done}, as requested; the same command resumes from there" in log.read_text()
    newest = list_saved(run)[-1]
    assert newest.step == done and newest.ranks == 2, "the last step was not saved"

    late, log = start(arguments, tmp_path / "late", MEDSSR_DEADLINE=str(time.time() - 1))
    assert late.wait(600) == EXIT_STOPPED
    assert f"stage2 stopped after step {done}, its end time is over" in log.read_text()

    medssr(*arguments)
    steps = read_steps(run)
    assert steps[: len(before)] == before
    assert [(step.step, step.prompts) for step in steps] == [(number, 2 * number) for number in range(1, STEPS + 1)]
    kept_samples = [row["step"] for row in read_jsonl(paths.samples)]
    assert kept_samples == sorted([*range(1, STEPS + 1)] * 4)
    for export in (*map(paths.hf_at, (2, 4, 6)), paths.hf):
        assert (export / "config.json").exists()
        assert "Not for clinical use" in (export / "README.md").read_text()
    assert f"{STEPS} of {STEPS} steps" in (paths.hf / "README.md").read_text()
    assert read_json(paths.summary)["steps"] == STEPS


@pytest.mark.slow
def test_killed_at_random_it_resumes_with_equal_numbers(medssr, command, tmp_path):
    """In deterministic mode, every metric of every step is equal, and so are the final weights."""
    settings = ("training.deterministic=true", "training.stage2.save_steps=2")
    medssr(*command(tmp_path / "whole", *settings))
    run, rng = tmp_path / "run", random.Random()
    killed, log = start(command(run, *settings), tmp_path / "killed")
    rows = rng.randrange(1, STEPS)
    until(lambda: len(read_steps(run)) >= rows, killed, log)
    time.sleep(rng.random())
    killed.kill()
    killed.wait()
    medssr(*command(run, *settings))
    assert list_values(run) == list_values(tmp_path / "whole"), f"killed after {rows} steps"
    exports = [RunPaths(folder).stage("stage2").hf for folder in (run, tmp_path / "whole")]
    weights = [(export / "model.safetensors").read_bytes() for export in exports]
    assert weights[0] == weights[1]


def list_values(run: Path) -> list[dict[str, float]]:
    """Return the metrics of each step, except those that depend on the clock."""
    clock = ("time", "seconds", "tokens_per_s", "mfu")
    rows = [step.as_row() for step in read_steps(run)]
    return [{name: row[name] for name in row if not name.startswith(clock)} for row in rows]
