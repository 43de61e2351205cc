"""GRPO learns: on the real stack, a tiny model improves from chance to a mean reward of at least 0.8."""

from __future__ import annotations

import random

import pytest
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.step_metrics import read_metrics


@pytest.mark.slow
def test_grpo_learns_to_choose_the_named_letter(medssr, tiny_config, tmp_path):
    rng = random.Random(1)
    data = tmp_path / "letters.jsonl"
    with JsonlLedger(data) as ledger:
        ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(64)))
    run = tmp_path / "run"
    medssr(
        "train",
        "--config",
        tiny_config,
        "--run-dir",
        run,
        "training.stage1.enabled=false",
        f"training.stage2.data=[{data}]",
        "training.stage2.steps=200",
        "training.stage2.prompts_per_step=16",
        "training.stage2.samples_per_prompt=8",
        "training.stage2.micro_batch_size=64",
        "training.stage2.max_new_tokens=1",
        "training.stage2.learning_rate=1e-3",
        "training.stage2.kl_coef=0",
        "training.stage2.lr_scheduler=cosine_with_min_lr",
        "training.stage2.save_steps=500",
    )
    rewards = [step.reward for step in read_metrics(RunPaths(run).stage("stage2").metrics)]
    first, last = sum(rewards[:4]) / 4, sum(rewards[-8:]) / 8
    assert first < 0.5, f"started at {first:.2f}, not near chance"
    assert last >= 0.8, f"reached {last:.2f}: {rewards}"
