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
from conftest import LETTERS, letter_question

from medssr_dist.errors import EXIT_STOPPED
from medssr_dist.jsonl import JsonlLedger, read_json, read_jsonl
from medssr_dist.training.checkpoints import complete_checkpoints

STEPS = 6
# What may differ between two runs that took the same steps.
_CLOCKS = ("time", "seconds")


@pytest.fixture
def command(tiny_config, tmp_path) -> Callable[..., list[str]]:
    """`medssr train` of stage 2 alone, for STEPS steps on questions that name their letter."""
    rng = random.Random(1)
    data = tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(20)))

    def arguments(run: Path, *overrides: str) -> list[str]:
        return [
            "train", "--config", str(tiny_config), "--run-dir", str(run), "training.stage1.enabled=false",
            f"training.stage2.data=[{data}]", f"training.stage2.steps={STEPS}", "training.stage2.learning_rate=1e-3",
            *overrides,
        ]  # fmt: skip

    return arguments


def start(arguments: list[str], log: Path, **env: str) -> subprocess.Popen:
    with open(log, "w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "medssr_dist.cli", *arguments], stdout=out, stderr=subprocess.STDOUT,
            env=os.environ | env,
        )  # fmt: skip


def until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.05)


def rows_of(run: Path) -> list[dict]:
    file = run / "training" / "stage2" / "metrics.jsonl"
    return list(read_jsonl(file)) if file.exists() else []


def numbers(run: Path) -> list[dict]:
    return [{name: row[name] for name in row if not name.startswith(_CLOCKS)} for row in rows_of(run)]


def steps_saved(run: Path) -> list[int]:
    return [found.step for found in complete_checkpoints(run / "training" / "stage2" / "checkpoints")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_it_after_the_step_and_nothing_is_done_twice(medssr, command, tmp_path, number):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = command(run, "training.stage2.save_steps=1000", "training.stage2.export_steps=2")
    process = start(arguments, log)
    until(lambda: len(rows_of(run)) >= 2, process, log)
    process.send_signal(number)
    assert process.wait(300) == EXIT_STOPPED, log.read_text()[-4000:]
    before = rows_of(run)
    done = before[-1]["step"]
    assert steps_saved(run) == [done], "the last step was not saved"
    assert f"stage2 stopped after step {done}, asked to; the same command goes on from there" in log.read_text()

    medssr(*arguments)
    rows = rows_of(run)
    assert rows[: len(before)] == before and [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["prompts"] for row in rows] == [2 * step for step in range(1, STEPS + 1)]
    folder = run / "training" / "stage2"
    assert [row["step"] for row in read_jsonl(folder / "samples.jsonl")] == sorted([*range(1, STEPS + 1)] * 4)
    for export in ("hf_step2", "hf_step4", "hf_step6", "hf"):
        assert (folder / export / "config.json").exists()
        assert "Not for clinical use" in (folder / export / "README.md").read_text()
    assert f"{STEPS} of {STEPS} steps" in (folder / "hf" / "README.md").read_text()
    assert read_json(folder / "summary.json")["steps"] == STEPS


@pytest.mark.slow
def test_it_stops_in_time_for_its_deadline(medssr, command, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = command(run, "training.stage2.save_steps=1000")
    # Long past when the first step can have been taken: what is asked is the order of events, not their pace.
    process = start(arguments, log, MEDSSR_DEADLINE=str(time.time() - 1))
    assert process.wait(600) == EXIT_STOPPED
    assert "stage2 stopped after step 0, before its end time" in log.read_text()
    assert not rows_of(run) and not steps_saved(run)
    medssr(*arguments)
    assert len(rows_of(run)) == STEPS


@pytest.mark.slow
def test_more_ranks_take_it_up(medssr, command, tmp_path):
    """And fewer, in the other direction; a run goes on with the optimizer state and the place in the data."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = command(run, "training.stage2.save_steps=1")
    process = start([*arguments, "training.ranks_per_node=1"], log)
    until(lambda: len(steps_saved(run)) >= 1 and len(rows_of(run)) >= 2, process, log)
    process.kill()
    process.wait()
    before = steps_saved(run)[-1]
    medssr(*arguments, "training.ranks_per_node=2")
    rows = rows_of(run)
    assert [(row["step"], row["prompts"]) for row in rows] == [(step, 2 * step) for step in range(1, STEPS + 1)]
    assert 1 <= before < STEPS
    assert complete_checkpoints(run / "training" / "stage2" / "checkpoints")[-1].ranks == 2
