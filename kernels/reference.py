"""Each operation in plain torch with autograd, with the logits [N, V] in memory: the oracle of tests and benchmarks.

It shares no code with the kernels. It computes in the dtype of the inputs, fp32 at least; pass fp64 for exact results.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from medssr_dist.kernels.grpo_options import GrpoOptions

T = TypeVar("T")


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logp [N], entropy [N]) from hidden [N, H], weight [V, H], target [N]; 0 where mask [N] is 0."""
    logits = hidden @ weight.t()
    log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    live = torch.ones_like(target, dtype=torch.bool) if mask is None else mask != 0
    logp = log_p.gather(1, torch.where(live, target, 0).long()[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.where(live, logp, 0.0), torch.where(live, entropy, 0.0)


def grpo_loss(
    logp: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    options: GrpoOptions,
    *,
    old_logp: torch.Tensor,
    ref_logp: torch.Tensor | None = None,
    rollout_logp: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss (0-d) of sequences [B, T]. All tensors have that shape and are finite. Counts are the mask's."""
    mask = mask.to(logp.dtype)
    drift = logp - old_logp
    if options.ratio == "sequence":
        base = old_logp if options.importance_level == "off" else _given(rollout_logp)
        ratio = _mean(logp - base, mask, 1)[:, None].exp().expand_as(logp)
    else:
        ratio = drift.clamp(-20, 20).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages)
    if options.dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, options.dual_clip * advantages), gain)
    policy = -gain
    if options.importance_level != "off" and options.ratio == "token":
        policy = policy * _importance(old_logp.detach(), _given(rollout_logp), mask, options)
    loss = _aggregate(policy, mask, options.aggregation, options)
    penalties = options.penalty_aggregation or options.aggregation
    if ref_logp is not None:
        loss = loss + options.kl_coef * _aggregate(_kl(logp - ref_logp, drift, options), mask, penalties, options)
    if options.entropy_coef:
        loss = loss - options.entropy_coef * _aggregate(_given(entropy), mask, penalties, options)
    return loss


def _given(value: T | None) -> T:
    assert value is not None, "the options need it"
    return value


def _mean(values: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    return (values * mask).sum(dim) / mask.sum(dim).clamp(min=1)


def _aggregate(values: torch.Tensor, mask: torch.Tensor, how: str, options: GrpoOptions) -> torch.Tensor:
    if how == "token_mean":
        return (values * mask).sum() / mask.sum().clamp(min=1)
    sequences = (mask.sum(1) > 0).sum().clamp(min=1)
    if how == "sequence_mean":
        return _mean(values, mask, 1).sum() / sequences
    return (values * mask).sum() / (sequences * _given(options.fixed_length))


def _kl(distance: torch.Tensor, drift: torch.Tensor, options: GrpoOptions) -> torch.Tensor:
    if options.kl_estimator == "k1":
        value = distance
    elif options.kl_estimator == "k2":
        value = distance**2 / 2
    else:
        held = distance.clamp(min=-10)
        value = torch.exp(-held) - 1 + held
    value = value.clamp(-10, 10)
    if not options.kl_unbiased:
        return value
    carrier = drift.exp().clamp(max=10).detach() * distance**2 / 2
    return value.detach() + carrier - carrier.detach()


def _importance(old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor, options: GrpoOptions) -> torch.Tensor:
    log_ratio = old - rollout
    by_sequence = options.importance_level == "sequence"
    if options.importance_gate == "ratio":
        statistic = (_mean(log_ratio, mask, 1)[:, None] if by_sequence else log_ratio).exp()
    else:
        p, q = (each.exp().clamp(1e-6, 1 - 1e-6) for each in (rollout, old))
        divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        statistic = divergence if options.importance_gate == "binary_kl" else (p - q).abs()
        statistic = _mean(statistic, mask, 1)[:, None] if by_sequence else statistic
    low, high = options.importance_low, options.importance_high
    if options.importance_mode == "clip":
        return statistic.clamp(low, high)
    return log_ratio.exp() * ((statistic >= low) & (statistic <= high))


def group_advantage(rewards: list[list[float]], mode: str, epsilon: float = 1e-9) -> list[list[float]]:
    """Return the advantages of each group of rewards, group by group, computed in fp64."""
    result = []
    for group in rewards:
        values = torch.tensor(group, dtype=torch.float64)
        count = len(group)
        centred = values - values.mean()
        if len(set(group)) == 1:
            result.append([0.0] * count)
        elif mode == "group_norm":
            result.append((centred / (values.std() + epsilon)).tolist())
        elif mode == "mean_only":
            result.append(centred.tolist())
        else:
            result.append([value - (sum(group) - value) / (count - 1) for value in group])
    return result
