"""Options of the update together on the real stack: that they run, and what they report."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from tiny_policy import LETTERS, letter_question

from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(medssr, tiny_config, tmp_path):
    """Trains stage 2 alone on letters, for 2 steps; returns its folder."""

    def run(**settings) -> Path:
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
        return tmp_path / "run" / "training" / "stage2"

    return run


def test_off_policy_with_everything_on(trained):
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
    folder = trained(
        packing="true",
        share_prompts="false",
        gradient_checkpointing="true",
        offload_optimizer="true",
        offload_reference="true",
        peak_tflops=1,
        **{f"stage2.{name}": value for name, value in stage.items()},
    )
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["samples"] == 16
        assert 0 < row["mfu"] < 1 and row["tokens_per_s_per_gpu"] > 0
        assert 0 <= row["importance_dropped"] < 0.5 and abs(row["rollout_kl"]) < 0.1
        assert 0 <= row["zero_variance"] < 1 and row["advantage_abs"] > 0 and row["entropy"] > 0
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)  # the reference is where it began
    assert any(row["clip_ratio"] > 0 or row["old_kl"] != 0 for row in rows)  # the second update is off-policy
    assert "from a separate forward pass: 2 updates per rollout" in read_json(folder / "summary.json")["old_logprobs"]


def test_adapters_reach_engines_and_checkpoint_merged(trained, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    folder = trained(lora_rank=4, **{"stage2.learning_rate": 1e-2, "stage2.kl_coef": 0})
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert all(row["grad_norm"] > 0 for row in rows)
    base, trained_model = (
        dict(AutoModelForCausalLM.from_pretrained(path).named_parameters()) for path in (tiny_model, folder / "hf")
    )
    changed = {name for name, weight in trained_model.items() if not torch.equal(weight, base[name])}
    assert changed and all("_proj" in name for name in changed)
