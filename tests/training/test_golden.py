"""The golden run: 4 GRPO steps on the real stack (CPU, fp32, fixed seed) against a committed sequence of metrics.

A change that is not meant to change numbers must pass with golden/grpo_fp32.json as it is. Other changes write it anew:

    MEDSSR_WRITE_GOLDEN=1 python -m pytest tests/training/test_golden.py -k ours
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_policy import LETTERS, letter_question, teach_answer_format, tiny_llama, tiny_tokenizer

from medssr_dist.data.jsonl import JsonlLedger, read_json
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import read_metrics

GOLDEN = Path(__file__).with_name("golden") / "grpo_fp32.json"
COMPARED = ("loss", "policy_loss", "kl", "reward", "grad_norm", "entropy", "response_length", "learning_rate")
# On another CPU, fp32 sums are computed in another order and differ in the last digits.
RELATIVE, ABSOLUTE = 1e-4, 1e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The tiny model trained in fp64, so that its fp32 weights are the same on every machine."""
    folder = tmp_path_factory.mktemp("golden_model")
    tokenizer = tiny_tokenizer()
    model = teach_answer_format(tiny_llama(len(tokenizer)).double(), tokenizer)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng = random.Random(1)
    file = tmp_path_factory.mktemp("golden_data") / "letters.jsonl"
    with JsonlLedger(file) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(32)))
    return file


def make_overrides(model: Path, data: Path, **training: str) -> list[str]:
    """Return overrides of the tiny config for 4 steps of stage 2 on one rank."""
    stage = {
        "steps": 4,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "micro_batch_size": 4,
        "max_new_tokens": 1,
        "learning_rate": 1e-3,
        "kl_coef": 0.05,
        "save_steps": 500,
        "data": f"[{data}]",
    }
    training = {"ranks_per_node": 1, "stage1.enabled": "false"} | training
    training |= {f"stage2.{name}": value for name, value in stage.items()}
    overrides = [f"training.{name}={value}" for name, value in training.items()]
    return [f"policy.model={model}", "policy.dtype=float32", *overrides]


def read_compared(run: Path) -> list[dict[str, float]]:
    """Return the compared metrics of each step."""
    rows = [step.as_row() for step in read_metrics(RunPaths(run).stage("stage2").metrics)]
    return [{name: row[name] for name in COMPARED if name in row} for row in rows]


def test_ours(medssr, tiny_config, tmp_path, model, data):
    medssr("train", "--config", tiny_config, "--run-dir", tmp_path / "run", *make_overrides(model, data))
    found = read_compared(tmp_path / "run")
    if os.environ.get("MEDSSR_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = read_json(GOLDEN)
    assert all(row["grad_norm"] > 0 and 0 < row["reward"] < 1 for row in expected)  # the steps do train
    assert len(found) == len(expected) == 4
    for step, (row, golden) in enumerate(zip(found, expected, strict=True), start=1):
        assert row == pytest.approx(golden, rel=RELATIVE, abs=ABSOLUTE), f"step {step}"


@pytest.mark.slow
def test_colocated_engines_give_the_same_sequence(medssr, tiny_config, tmp_path, model, data):
    """Ranks and engines take turns: the policy and its samples are those of engines with a place of their own."""
    overrides = make_overrides(model, data, placement="colocated", engines="1")
    medssr("train", "--config", tiny_config, "--run-dir", tmp_path / "run", *overrides)
    found = read_compared(tmp_path / "run")
    assert len(found) == 4
    for row, golden in zip(found, read_json(GOLDEN), strict=True):
        assert row == pytest.approx(golden, rel=RELATIVE, abs=ABSOLUTE)


@pytest.mark.slow
def test_openrlhfs_loss_gives_the_same_sequence(tiny_config, tmp_path, model, data):
    """OpenRLHF's network and loss in our loop, on the same seeded samples."""
    program = [sys.executable, "-m", "medssr_dist.bench.training.stock_stage", "--config", tiny_config]
    options = ["--run-dir", tmp_path / "run", "--pieces", "loss", "--set"]
    overrides = make_overrides(model, data, share_prompts="false")
    done = subprocess.run([*program, *options, *overrides], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = read_compared(tmp_path / "run")
    assert len(found) == 4
    for row, golden in zip(found, read_json(GOLDEN), strict=True):
        assert row == pytest.approx({name: golden[name] for name in row}, rel=RELATIVE, abs=ABSOLUTE)
