"""`medssr train` on the real stack: the next batch made beside the training, an engine killed, an engine that hangs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger, read_jsonl

pytestmark = pytest.mark.slow
GENEROUS_S = 900


@pytest.fixture
def arguments(tiny_config, tmp_path) -> list:
    """Of `medssr`, to train stage 2 alone on questions whose answer is in the question."""
    rng = random.Random(1)
    data = tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(32)))
    return [
        "train",
        "--config",
        tiny_config,
        "--run-dir",
        tmp_path / "run",
        "training.stage1.enabled=false",
        f"training.stage2.data=[{data}]",
        "training.stage2.steps=3",
    ]


def rows(run: Path) -> list[dict]:
    file = run / "training" / "stage2" / "metrics.jsonl"
    return list(read_jsonl(file)) if file.exists() else []


def test_the_next_batch_is_made_beside_the_training(medssr, arguments, tmp_path):
    medssr(*arguments, "training.async_rollout=true", "training.stage2.importance=token")
    found = rows(tmp_path / "run")
    assert [row["policy_lag"] for row in found] == [0, 1, 1]
    assert all("rollout_kl" in row and row["samples"] == 8 and 2 <= row["prompts_drawn"] <= 8 for row in found)


def start(arguments, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "medssr_dist.cli", *map(str, arguments), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def engine_core(process: subprocess.Popen, run: Path) -> int:
    """vLLM's own process of the rollout engine, once a step has been taken."""
    end = time.monotonic() + GENEROUS_S
    while time.monotonic() < end and process.poll() is None:
        if rows(run):
            found = [each for each in psutil.process_iter(["name", "environ"]) if is_core_of(each, process.pid)]
            if found:
                return found[0].pid
        time.sleep(0.2)
    raise AssertionError(process.communicate()[0][-4000:])


def is_core_of(each: psutil.Process, driver: int) -> bool:
    """Ray's processes are children of its daemon, which the driver has started."""
    try:
        return each.name().startswith("VLLM") and any(parent.pid == driver for parent in each.parents())
    except psutil.Error:
        return False


def test_an_engine_killed_in_training_comes_back(arguments, tmp_path):
    process = start(arguments, "training.stage2.steps=30")
    os.kill(engine_core(process, tmp_path / "run"), signal.SIGKILL)
    output, _ = process.communicate(timeout=GENEROUS_S)
    assert process.returncode == 0, output[-4000:]
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == list(range(1, 31))
    assert found[-1]["engine_restarts"] == 1
    assert {row["policy_lag"] for row in found} == {0}


def test_an_engine_that_hangs_ends_the_run_by_name(arguments, tmp_path):
    process = start(arguments, "training.stage2.steps=10000", "training.stall_s=20")
    core = engine_core(process, tmp_path / "run")
    os.kill(core, signal.SIGSTOP)
    output, _ = process.communicate(timeout=GENEROUS_S)
    assert process.returncode not in (0, 2, 3)
    told = next((line for line in output.splitlines() if "training stands still" in line), output[-4000:])
    assert "rollout engine 0" in told
    logs = "".join(file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*.err"))
    assert "Current thread" in logs or "Thread 0x" in logs  # the stacks
