"""From samples to micro-batches, without ranks: padding, advantages, KL in the reward, options and metrics."""

from __future__ import annotations

import json

import pytest
import torch

from medssr_dist.config.training import Stage, Training
from medssr_dist.training.backend.openrlhf import Experience
from medssr_dist.training.step_metrics import rollout_means
from medssr_dist.training.update.experience import make_micro_batch, subtract_kl
from medssr_dist.training.update.grpo_terms import (
    compute_advantages,
    describe_old_logprobs,
    find_old_logprobs_reason,
    make_grpo_options,
)


def make_sample(prompt: int, answer: int, reward: float, confidence: float | None = None) -> Experience:
    """Return a sequence of `prompt` tokens 5 and `answer` tokens 7, as the rollout makes it."""
    actions = torch.zeros(1, prompt + answer, dtype=torch.long)
    actions[:, prompt:] = 1
    return Experience(
        sequences=torch.tensor([[5] * prompt + [7] * answer]),
        attention_mask=torch.ones(1, prompt + answer, dtype=torch.long),
        action_mask=actions[:, 1:],
        rewards=torch.tensor([reward]),
        labels=[json.dumps({"answer": "A", "confidence": confidence})],
        response_length=torch.tensor([answer]),
        truncated=torch.tensor([False]),
        info={"invalid_answer": torch.tensor([1.0 - reward])},
    )


SAMPLES = [make_sample(3, 1, 1.0, 0.5), make_sample(2, 4, 0.0, 0.75)]


def test_a_micro_batch_is_padded_on_the_right():
    batch = make_micro_batch(SAMPLES, torch.tensor([0.5, -2.0]), [0, 1], pad_token=9)
    assert batch.sequences.tolist() == [[5, 5, 5, 7, 9, 9], [5, 5, 7, 7, 7, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch.action_mask.tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.advantages.tolist() == [[0, 0, 0.5, 0, 0], [0, -2, -2, -2, -2]]
    assert batch.action_log_probs is None and batch.rollout_log_probs is None


def test_a_short_micro_batch_is_not_padded():
    assert make_micro_batch(SAMPLES, torch.zeros(2), [0], 9).sequences.shape == (1, 4)


def test_an_idle_micro_batch_has_no_actions():
    batch = make_micro_batch(SAMPLES, torch.ones(2), [], 9)
    assert batch.sequences.shape == (1, 4)
    assert not batch.action_mask.any() and not batch.advantages.any()


def test_kl_in_reward_subtracts_kl_of_this_and_later_tokens():
    batch = make_micro_batch(SAMPLES, torch.tensor([1.0, 1.0]), [0, 1], 9)
    batch.base_action_log_probs = torch.zeros(2, 5)
    batch.action_log_probs = torch.tensor([[0.0, 0, 0.3, 9, 9], [9, 0.1, 0.2, 0.0, 0.4]]) * batch.action_mask
    mean = subtract_kl([batch], kl_coef=0.5, estimator="k1")
    assert mean == pytest.approx(1.0 / 5)
    expected = [[0, 0, 1 - 0.15, 0, 0], [0, 1 - 0.35, 1 - 0.3, 1 - 0.2, 1 - 0.2]]
    torch.testing.assert_close(batch.advantages, torch.tensor(expected))


def test_rollout_means_are_over_samples():
    found = rollout_means(SAMPLES)
    assert found.pop("reward_std") == pytest.approx(0.5**0.5)
    assert found == {
        "reward": 0.5,
        "response_length": 2.5,
        "truncated": 0.0,
        "samples": 2.0,
        "invalid_answer": 0.5,
        "label_confidence": 0.625,
    }
    assert "label_confidence" not in rollout_means([make_sample(1, 1, 1.0)])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("group_norm", [0.7071, -0.7071, 0, 0]),
        ("mean_only", [0.5, -0.5, 0, 0]),
        ("rloo", [1.0, -1.0, 0, 0]),
    ],
)
def test_advantages_compare_within_each_group(mode, expected):
    stage = Stage(samples_per_prompt=2, advantage=mode)
    found = compute_advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), stage)
    torch.testing.assert_close(found.advantage, torch.tensor(expected), atol=1e-4, rtol=0)
    assert found.zero_variance.tolist() == [False, True]


@pytest.mark.parametrize(
    ("training", "stage", "reason"),
    [
        ({}, {}, ""),
        ({}, {"importance": "token"}, ""),
        ({}, {"kl_coef": 0}, ""),
        ({}, {"updates_per_rollout": 2}, "2 updates per rollout"),
        ({}, {"kl_in": "reward"}, "kl_in=reward"),
        ({"old_logprobs": "always"}, {}, "training.old_logprobs=always"),
    ],
)
def test_old_logprobs_get_a_forward_pass_if_needed(training, stage, reason):
    settings = Training(stage2={"enabled": False}, **training), Stage(**stage)
    assert find_old_logprobs_reason(*settings) == reason
    assert reason in describe_old_logprobs(*settings)
    assert ("from the training forward" in describe_old_logprobs(*settings)) == (reason == "")


def test_the_kernels_get_every_setting():
    stage = Stage(
        clip_low=0.1,
        clip_high=0.3,
        dual_clip=2.0,
        kl_coef=0.5,
        kl_estimator="k2",
        kl_unbiased=True,
        entropy_coef=0.02,
        importance="token",
        importance_mode="clip",
        importance_low=0.2,
        importance_high=2.0,
        aggregation="fixed_length",
        max_new_tokens=77,
    )
    found = vars(make_grpo_options(stage))
    assert found == {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "dual_clip": 2.0,
        "ratio": "token",
        "kl_coef": 0.5,
        "kl_estimator": "k2",
        "kl_unbiased": True,
        "entropy_coef": 0.02,
        "aggregation": "fixed_length",
        "penalty_aggregation": "fixed_length",
        "fixed_length": 77,
        "importance_level": "token",
        "importance_mode": "clip",
        "importance_gate": "ratio",
        "importance_low": 0.2,
        "importance_high": 2.0,
    }
    assert make_grpo_options(Stage(kl_in="reward")).kl_coef == 0
    assert make_grpo_options(Stage(aggregation="sequence_mean")).penalty_aggregation == "token_mean"
