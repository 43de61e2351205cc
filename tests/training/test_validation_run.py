"""Held-out validation on the real stack: engines answer with the weights of the step, and the best is published."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger, read_json
from medssr_dist.errors import EXIT_BAD_INPUT
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import read_metrics
from medssr_dist.training.validation_log import find_best, read_validations

STEPS = 5


@pytest.fixture
def arguments(tiny_config, tmp_path) -> list:
    """Arguments of `medssr` for stage 2 on questions that contain their answer, validated on others."""
    rng = random.Random(1)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("letters", "held_out")}
    for file in files.values():
        with JsonlLedger(file) as ledger:
            ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(16)))
    return [
        "train",
        "--config",
        tiny_config,
        "--run-dir",
        tmp_path / "run",
        "training.stage1.enabled=false",
        f"training.stage2.data=[{files['letters']}]",
        f"training.stage2.steps={STEPS}",
        "training.stage2.learning_rate=1e-3",
        f"training.validate.data=[{files['held_out']}]",
        "training.validate.every=2",
        "training.stage2.save_steps=100",
    ]


@pytest.mark.slow
def test_validation_chooses_the_published_policy(medssr, arguments, tiny_model, tmp_path):
    medssr(*arguments)
    paths = RunPaths(tmp_path / "run").stage("stage2")
    results, steps = read_validations(paths.validation), read_metrics(paths.metrics)
    assert [result.step for result in results] == [0, 2, 4, STEPS]
    assert all(len(result.right) == 16 and result.generations == 4 for result in results)
    shown = {step.step: step.validation_accuracy for step in steps}
    assert shown == {1: None, 3: None} | {result.step: pytest.approx(result.accuracy) for result in results[1:]}
    assert all(step.vote_entropy is not None and 0 <= step.unanimous <= 1 for step in steps)
    best, summary = find_best(results), read_json(paths.summary)
    assert summary["published_step"] == best.step
    card = (paths.hf / "README.md").read_text()
    begun = "No step of this stage" if best.step == 0 else f"{best.step} of {STEPS} steps"
    assert begun in card and f"accuracy {best.accuracy:.3f}" in card
    assert paths.candidates() == []


@pytest.mark.slow
def test_a_stage_that_only_harms_publishes_its_start(medssr, arguments, tiny_model, tmp_path):
    medssr(*arguments, "training.stage2.learning_rate=1", "training.stage2.max_grad_norm=0")
    paths = RunPaths(tmp_path / "run").stage("stage2")
    assert read_json(paths.summary)["published_step"] == 0
    start, kept = (load_file(folder / "model.safetensors") for folder in (tiny_model, paths.hf))
    assert start.keys() == kept.keys() and all(torch.equal(kept[name], start[name].bfloat16()) for name in start)
    assert "They are those that it began with: the base model" in (paths.hf / "README.md").read_text()


def test_training_questions_are_refused_as_held_out(medssr, arguments, tmp_path):
    data = next(part for part in arguments if str(part).startswith("training.stage2.data"))
    done = medssr(*arguments, data.replace("stage2.data", "validate.data"), check=False)
    assert done.returncode == EXIT_BAD_INPUT
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("medssr: ")]
    assert "training.validate.data: 16 of 16 questions are also in training.stage2.data" in line
