"""A stage on the real stack that is stopped, killed, or runs out of time: the same command goes on where it was."""

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
from medssr_dist.training.weights.checkpoints import Checkpoint, list_checkpoints

STEPS = 6


@pytest.fixture
def command(tiny_config, tmp_path) -> Callable[..., list[str]]:
    """`medssr train` of stage 2 alone, for STEPS steps on questions that name their letter."""
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
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def rows_of(run: Path) -> list[dict]:
    file = run / "training" / "stage2" / "metrics.jsonl"
    return list(read_jsonl(file)) if file.exists() else []


def newest(run: Path) -> Checkpoint:
    return list_checkpoints(run / "training" / "stage2" / "checkpoints")[-1]


def steps_saved(run: Path) -> list[int]:
    return [found.step for found in list_checkpoints(run / "training" / "stage2" / "checkpoints")]


@pytest.mark.slow
def test_a_stage_goes_on_through_a_kill_other_ranks_a_signal_and_a_deadline(medssr, command, tmp_path):
    run = tmp_path / "run"
    arguments = command(run, "training.stage2.export_steps=2", "training.trackers=[tensorboard]")
    folder = run / "training" / "stage2"

    killed, log = start([*arguments, "training.ranks_per_node=1"], tmp_path / "killed")
    until(lambda: len(steps_saved(run)) >= 1 and len(rows_of(run)) >= 2, killed, log)
    killed.kill()
    killed.wait()
    kept = [row for row in rows_of(run) if row["step"] <= steps_saved(run)[-1]]

    # From now on with two ranks, and saved by nothing but the signal.
    arguments.append("training.stage2.save_steps=1000")
    since = time.time()
    asked, log = start(arguments, tmp_path / "asked")
    until(lambda: any(row["time"] > since for row in rows_of(run)), asked, log)
    asked.send_signal(signal.SIGUSR1)
    assert asked.wait(300) == EXIT_STOPPED, log.read_text()[-4000:]
    before = rows_of(run)
    done = before[-1]["step"]
    assert before[: len(kept)] == kept
    assert f"stage2 stopped after step {done}, asked to; the same command goes on from there" in log.read_text()
    assert steps_saved(run)[-1] == done and newest(run).ranks == 2, "the last step was not saved"

    late, log = start(arguments, tmp_path / "late", MEDSSR_DEADLINE=str(time.time() - 1))
    assert late.wait(600) == EXIT_STOPPED
    assert f"stage2 stopped after step {done}, its end time is over" in log.read_text()

    medssr(*arguments)
    rows = rows_of(run)
    assert rows[: len(before)] == before
    assert [(row["step"], row["prompts"]) for row in rows] == [(step, 2 * step) for step in range(1, STEPS + 1)]
    kept_samples = [row["step"] for row in read_jsonl(folder / "samples.jsonl")]
    assert kept_samples == sorted([*range(1, STEPS + 1)] * 4)
    for export in ("hf_step2", "hf_step4", "hf_step6", "hf"):
        assert (folder / export / "config.json").exists()
        assert "Not for clinical use" in (folder / export / "README.md").read_text()
    assert f"{STEPS} of {STEPS} steps" in (folder / "hf" / "README.md").read_text()
    assert read_json(folder / "summary.json")["steps"] == STEPS


@pytest.mark.slow
def test_killed_at_a_random_moment_it_gives_the_numbers_of_one_that_was_not(medssr, command, tmp_path):
    """In deterministic mode: every metric of every step, and the weights at the end."""
    settings = ("training.deterministic=true", "training.stage2.save_steps=2")
    medssr(*command(tmp_path / "whole", *settings))
    run, rng = tmp_path / "run", random.Random()
    killed, log = start(command(run, *settings), tmp_path / "killed")
    rows = rng.randrange(1, STEPS)
    until(lambda: len(rows_of(run)) >= rows, killed, log)
    time.sleep(rng.random())
    killed.kill()
    killed.wait()
    medssr(*command(run, *settings))
    assert numbers(run) == numbers(tmp_path / "whole"), f"killed after {rows} steps"
    weights = [(folder / "training/stage2/hf/model.safetensors").read_bytes() for folder in (run, tmp_path / "whole")]
    assert weights[0] == weights[1]


def numbers(run: Path) -> list[dict]:
    """The metrics, less what the clock tells."""
    clock = ("time", "seconds", "tokens_per_s", "mfu")
    return [{name: row[name] for name in row if not name.startswith(clock)} for row in rows_of(run)]
