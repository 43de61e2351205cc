"""Options of the update on the real stack, several at once: they run and report their metrics."""

from __future__ import annotations

import math
import random

import pytest
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger, read_json
from medssr_dist.run.paths import RunPaths, StagePaths
from medssr_dist.training.step_metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(medssr, tiny_config, tmp_path):
    """Return a function that trains stage 2 alone for 2 steps and returns the stage's paths."""

    def run(**settings) -> StagePaths:
        rng = random.Random(1)
        data = tmp_path / "letters.jsonl"
        with JsonlLedger(data) as ledger:
            ledger.append(*(letter_question(rng.choice(LETTERS), rng.random()).model_dump() for _ in range(16)))
        overrides = [f"training.{name}={value}" for name, value in settings.items()]
        medssr(
            "train",
            "--config",
            tiny_config,
            "--run-dir",
            tmp_path / "run",
            "training.stage1.enabled=false",
            f"training.stage2.data=[{data}]",
            "training.stage2.steps=2",
            "training.stage2.prompts_per_step=4",
            "training.stage2.max_new_tokens=1",
            "training.stage2.save_steps=500",
            *overrides,
        )
        return RunPaths(tmp_path / "run").stage("stage2")

    return run


def test_many_options_together_off_policy(trained):
    """Dr. GRPO with two updates per rollout, packed by a token budget, with importance correction and offloading."""
    stage = {
        "advantage": "mean_only",
        "aggregation": "fixed_length",
        "dual_clip": 3.0,
        "clip_high": 0.28,
        "kl_in": "reward",
        "kl_estimator": "k1",
        "kl_coef": 0.1,
        "entropy_coef": 0.01,
        "importance": "token",
        "updates_per_rollout": 2,
        "micro_batch_tokens": 256,
    }
    paths = trained(
        packing="true",
        share_prompts="false",
        gradient_checkpointing="true",
        offload_optimizer="true",
        offload_reference="true",
        peak_tflops=1,
        **{f"stage2.{name}": value for name, value in stage.items()},
    )
    steps = read_metrics(paths.metrics)
    assert [step.step for step in steps] == [1, 2]
    for step in steps:
        assert all(math.isfinite(value) for value in vars(step).values() if value is not None)
        assert step.samples == 16
        assert 0 < step.mfu < 1 and step.tokens_per_s_per_gpu > 0
        assert 0 <= step.importance_dropped < 0.5 and abs(step.rollout_kl) < 0.1
        assert 0 <= step.zero_variance < 1 and step.advantage_abs > 0 and step.entropy > 0
    assert steps[0].kl == pytest.approx(0, abs=1e-3)  # the policy still equals the reference
    assert any(step.clip_ratio > 0 or step.old_kl != 0 for step in steps)  # the second update is off-policy
    assert "from a separate forward pass: 2 updates per rollout" in read_json(paths.summary)["old_logprobs"]


def test_the_exported_model_has_merged_adapters(trained, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    paths = trained(lora_rank=4, **{"stage2.learning_rate": 1e-2, "stage2.kl_coef": 0})
    assert all(step.grad_norm > 0 for step in read_metrics(paths.metrics))
    base, trained_model = (
        dict(AutoModelForCausalLM.from_pretrained(path).named_parameters()) for path in (tiny_model, paths.hf)
    )
    changed = {name for name, weight in trained_model.items() if not torch.equal(weight, base[name])}
    assert changed and all("_proj" in name for name in changed)
