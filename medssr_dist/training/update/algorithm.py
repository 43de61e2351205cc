"""A stage's algorithm: options of the kernels' loss, advantages, and whether old log-probs need a pass of their own."""

from __future__ import annotations

import torch

from medssr_dist.config.training import Stage, Training
from medssr_dist.kernels import GroupAdvantage, GrpoOptions, group_advantage


def grpo_options(stage: Stage) -> GrpoOptions:
    """The kernels' options for `stage`. Entropy is always computed, for the metrics at least."""
    fixed = stage.aggregation == "fixed_length"
    return GrpoOptions(
        clip_low=stage.clip_low,
        clip_high=stage.clip_high,
        dual_clip=stage.dual_clip,
        ratio=stage.ratio,
        kl_coef=0.0 if stage.kl_in == "reward" else stage.kl_coef,
        kl_estimator=stage.kl_estimator,
        kl_unbiased=stage.kl_unbiased,
        entropy_coef=stage.entropy_coef,
        aggregation=stage.aggregation,
        penalty_aggregation="fixed_length" if fixed else "token_mean",
        fixed_length=stage.max_new_tokens if fixed else None,
        importance_level=stage.importance,
        importance_mode=stage.importance_mode,
        importance_gate=stage.importance_gate,
        importance_low=stage.importance_low,
        importance_high=stage.importance_high,
    )


def old_logprobs_pass(training: Training, stage: Stage) -> str:
    """Why the log-probs of the policy before the update need a forward pass of their own; '' if they do not.

    With one optimizer step a rollout, the policy before the update is the one in the training forward: its log-probs,
    detached, are the old ones, and those that an importance correction compares with the rollout engine's.
    """
    if training.old_logprobs == "always":
        return "training.old_logprobs=always"
    if training.batching == "openrlhf":
        return "training.batching=openrlhf"
    if stage.updates_per_rollout > 1:
        return f"{stage.updates_per_rollout} updates a rollout"
    if stage.kl_in_reward:
        return "kl_in=reward"
    return ""


def told(training: Training, stage: Stage) -> str:
    """The choice in words, for the log and the stage's summary."""
    reason = old_logprobs_pass(training, stage)
    if reason:
        return f"by a forward pass of their own: {reason}"
    return "those of the training forward: one update a rollout is exactly on-policy"


def advantages_of(rewards: torch.Tensor, stage: Stage) -> GroupAdvantage:
    """Advantages of rewards [N], whose groups of `samples_per_prompt` lie one after the other."""
    bounds = torch.arange(0, len(rewards) + 1, stage.samples_per_prompt)
    return group_advantage(rewards, bounds, mode=stage.advantage)
