"""GRPO settings that do not fit together are refused on loading; the message has the key, the value and the fix."""

import pytest
from config_builder import make_config
from pydantic import ValidationError

from medssr_dist.config.objective import Objective
from medssr_dist.config.schema import Config


def config(policy: dict | None = None, stage: dict | None = None, **training) -> Config:
    """A config whose only stage is stage 1."""
    return make_config(policy=policy or {}, training={"stage1": stage or {}, **training})


def refused(make, *args, **settings) -> str:
    with pytest.raises(ValidationError) as error:
        make(*args, **settings)
    (only,) = error.value.errors()
    return only["msg"]


@pytest.mark.parametrize(
    ("settings", "needle"),
    [
        ({"kl_estimator": "k1"}, "use k2 or k3, kl_unbiased or kl_in=reward"),
        ({"kl_in": "reward", "kl_coef": 0}, "set kl_coef"),
        ({"kl_in": "reward", "kl_unbiased": True}, "leave it out with kl_in=reward"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"entropy_coef": -0.1}, "greater than or equal to 0"),
        ({"importance_gate": "tv"}, "importance_gate has no effect with importance=off"),
        ({"importance_high": 2.0}, "importance_high has no effect"),
        ({"importance": "token", "importance_low": 2.0, "importance_high": 1.0}, "2.0 is above importance_high = 1.0"),
        ({"importance": "sequence", "importance_mode": "clip"}, "set importance=token importance_gate=ratio"),
        ({"importance": "token", "importance_mode": "clip", "importance_gate": "tv"}, "importance_gate=ratio"),
        ({"importance": "token", "importance_gate": "binary_kl"}, "set importance_low=0"),
        ({"ratio": "sequence", "importance": "token"}, "leave importance=token out"),
        ({"ratio": "sequence", "importance": "sequence", "importance_high": 2.0}, "leave importance_high out"),
    ],
)
def test_conflicting_settings_are_refused(settings, needle):
    assert needle in refused(Objective, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"advantage": "mean_only", "aggregation": "fixed_length", "kl_coef": 0},
        {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4},
        {"clip_high": 0.28, "dual_clip": 3.0},
        {"kl_estimator": "k1", "kl_in": "reward"},
        {"kl_estimator": "k1", "kl_unbiased": True},
        {"kl_estimator": "k1", "kl_coef": 0},
        {"importance": "token", "importance_mode": "clip"},
        {"importance": "sequence", "importance_gate": "binary_kl", "importance_low": 0, "importance_high": 0.1},
        {"ratio": "sequence", "importance": "sequence"},
    ],
)
def test_settings_that_fit_are_accepted(settings):
    assert Objective(**settings).model_dump() == Objective().model_dump() | settings


@pytest.mark.parametrize(
    ("stage", "training", "needle"),
    [
        ({"micro_batch_tokens": 8192}, {}, "packing=true, not batching=balanced and packing=false"),
        ({"micro_batch_tokens": 8192}, {"packing": True, "batching": "fixed"}, "not batching=fixed and packing=true"),
        ({"updates_per_rollout": 65}, {}, "512 is fewer than ranks x updates_per_rollout = 8 x 65"),
    ],
)
def test_impossible_combinations_are_refused(stage, training, needle):
    message = refused(config, stage=stage, **training)
    assert needle in message and "stage1" in message


def test_a_disabled_stage_is_not_checked():
    config(stage={"enabled": False, "micro_batch_tokens": 8192, "updates_per_rollout": 999})


def test_micro_batches_need_not_divide_the_samples():
    assert config(stage={"micro_batch_size": 7}).training.stage1.sequences == 512


def test_a_token_budget_holds_the_longest_sequence():
    message = refused(config, stage={"micro_batch_tokens": 4095}, packing=True)
    assert "micro_batch_tokens = 4095" in message and "max_model_len = 4096" in message
    assert config(stage={"micro_batch_tokens": 4096}, packing=True)


def test_float32_is_trained_without_flash_attention():
    asked = {"dtype": "float32"}
    assert "set training.attention=varlen" in refused(config, asked, attention="flash_attention_2")
    assert config(asked)


def test_rollouts_in_8_bits_need_an_importance_correction():
    assert "importance=token" in refused(config, rollout_dtype="fp8")
    assert config(stage={"importance": "token"}, rollout_dtype="fp8")
    assert config({"dtype": "float32"}, {"enabled": False})
