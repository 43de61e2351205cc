"""`medssr train` on the real stack: batches made during training, a killed engine, an engine that hangs."""

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
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import StepMetrics, read_metrics

pytestmark = pytest.mark.slow
GENEROUS_S = 900


@pytest.fixture
def arguments(tiny_config, tmp_path) -> list:
    """Arguments of `medssr` that train only stage 2, on questions that contain their answer."""
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


def read_steps(run: Path) -> list[StepMetrics]:
    return read_metrics(RunPaths(run).stage("stage2").metrics)


def test_the_next_batch_is_made_during_training(medssr, arguments, tmp_path):
    in_order = "training.deterministic=true"
    medssr(*arguments, "training.max_policy_lag=1", "training.stage2.importance=token", in_order)
    steps = read_steps(tmp_path / "run")
    assert [step.policy_lag for step in steps] == [0, 1, 1]
    assert all(step.rollout_kl is not None and step.samples == 8 and 2 <= step.prompts_drawn <= 8 for step in steps)


def test_rollouts_are_at_most_two_steps_behind(medssr, arguments, tmp_path):
    """And the samples say which version each of their tokens is of."""
    ahead = "training.max_policy_lag=2", "training.stage2.importance=token", "training.keep_samples=100"
    medssr(*arguments, *ahead, "training.stage2.steps=6")
    steps = read_steps(tmp_path / "run")
    assert [step.step for step in steps] == list(range(1, 7))
    assert all(0 <= step.policy_lag <= step.policy_lag_max <= min(2, step.step - 1) for step in steps)
    assert any(step.policy_lag_max for step in steps)
    for row in read_jsonl(RunPaths(tmp_path / "run").stage("stage2").samples):
        versions = [version for _, version in row["versions"]]
        assert versions == sorted(versions) and versions[0] == row["step"] - 1 - row["policy_lag"]


def start(arguments, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "medssr_dist.cli", *map(str, arguments), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def find_engine_core(process: subprocess.Popen, run: Path) -> int:
    """Wait until a step is finished; return the process id of vLLM's own process in the rollout engine."""
    end = time.monotonic() + GENEROUS_S
    while time.monotonic() < end and process.poll() is None:
        if read_steps(run):
            found = [each for each in psutil.process_iter(["name", "environ"]) if is_core_of(each, process.pid)]
            if found:
                return found[0].pid
        time.sleep(0.2)
    raise AssertionError(process.communicate()[0][-4000:])


def is_core_of(each: psutil.Process, driver: int) -> bool:
    """Return whether it is vLLM's process of this driver. Ray's daemon, a child of the driver, is its ancestor."""
    try:
        return each.name().startswith("VLLM") and any(parent.pid == driver for parent in each.parents())
    except psutil.Error:
        return False


def test_an_engine_killed_in_training_is_restarted(arguments, tmp_path):
    process = start(arguments, "training.stage2.steps=30")
    os.kill(find_engine_core(process, tmp_path / "run"), signal.SIGKILL)
    output, _ = process.communicate(timeout=GENEROUS_S)
    assert process.returncode == 0, output[-4000:]
    steps = read_steps(tmp_path / "run")
    assert [step.step for step in steps] == list(range(1, 31))
    assert steps[-1].engine_restarts == 1
    assert {step.policy_lag for step in steps} == {0}


def test_a_hanging_engine_ends_the_run_and_is_named(arguments, tmp_path):
    process = start(arguments, "training.stage2.steps=10000", "training.stall_s=20")
    core = find_engine_core(process, tmp_path / "run")
    os.kill(core, signal.SIGSTOP)
    output, _ = process.communicate(timeout=GENEROUS_S)
    assert process.returncode not in (0, 2, 3)
    error = next((line for line in output.splitlines() if "training is stalled" in line), output[-4000:])
    assert "rollout engine 0" in error
    logs = "".join(file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*.err"))
    assert "Current thread" in logs or "Thread 0x" in logs  # the stacks
