"""Terms of a stage's GRPO algorithm: advantages, the loss options of the kernels, and which log-probs are needed."""

from __future__ import annotations

import torch

from medssr_dist.config.training import Stage, Training
from medssr_dist.kernels import GroupAdvantage, GrpoOptions, group_advantage


def compute_advantages(reward_BG: torch.Tensor, stage: Stage) -> GroupAdvantage:
    """Compare each reward with those of its group (arXiv 2402.03300 section 4.1.2).

    Args:
        reward_BG: rewards of B prompts with G samples each, fp32.

    Returns:
        advantage [N = B x G] in the same order, std [B], zero_variance [B].
    """
    prompts, samples = reward_BG.shape
    bounds = torch.arange(0, prompts * samples + 1, samples)
    return group_advantage(reward_BG.flatten(), bounds, mode=stage.advantage)


def make_grpo_options(stage: Stage) -> GrpoOptions:
    """Return the loss options of the kernels for `stage`. Entropy is always computed, if only for the metrics."""
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


def find_old_logprobs_reason(training: Training, stage: Stage) -> str:
    """Return why the policy's log-probs before the update need a separate forward pass; '' if they need none.

    With one optimizer step per rollout, the policy before the update is the policy of the training forward. Its
    log-probs, detached, are the old log-probs, also for the importance correction against the rollout engine.
    """
    if training.old_logprobs == "always":
        return "training.old_logprobs=always"
    if stage.updates_per_rollout > 1:
        return f"{stage.updates_per_rollout} updates per rollout"
    if stage.kl_in_reward:
        return "kl_in=reward"
    return ""


def describe_old_logprobs(training: Training, stage: Stage) -> str:
    """Describe where the old log-probs come from, for the log and the stage's summary."""
    reason = find_old_logprobs_reason(training, stage)
    if reason:
        return f"from a separate forward pass: {reason}"
    return "from the training forward: one update per rollout is exactly on-policy"
