"""The row and token operations in plain torch: used on the CPU, and as the reference of the Triton forms in tests.

Logits are processed a few rows at a time, so that the fp32 copies stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from medssr_dist.kernels.grpo_options import GrpoOptions

CPU_BLOCK, CUDA_BLOCK = 1 << 18, 1 << 24  # elements
KL_LIMIT = 10.0  # the KL estimate and its importance weight are clamped to [-10, 10]
LOG_RATIO_LIMIT = 20.0


def _row_blocks(logits: torch.Tensor) -> Iterator[slice]:
    elements = CUDA_BLOCK if logits.is_cuda else CPU_BLOCK
    rows = max(1, elements // max(1, logits.shape[1]))
    for start in range(0, logits.shape[0], rows):
        yield slice(start, min(start + rows, logits.shape[0]))


def row_stats(logits: torch.Tensor, target: torch.Tensor, stats: torch.Tensor, scale: float, entropy: bool) -> None:
    """Update the running stats [4, n] of the rows with the logits [n, v] of one vocabulary slice.

    With z = scale * logits, stats holds: max of logits, sum e^(z - max z), sum e^(z - max z) (z - max z), and the
    logit at `target` [n]. They start as -inf, 0, 0, -inf. The third is updated only if `entropy`.

    Args:
        target: columns, counted from the slice's first one. A target outside the slice leaves the fourth unchanged.
    """
    for rows in _row_blocks(logits):
        block = logits[rows].to(stats.dtype)
        old_max, total, dot, _ = stats[:, rows].clone()
        maximum = torch.maximum(old_max, block.amax(dim=1))
        shift = torch.where(total > 0, (old_max - maximum) * scale, 0.0)
        decay = shift.exp()
        _gather_target(block, target[rows], stats[3, rows])
        z = (block - maximum[:, None]).mul_(scale)
        powers = z.exp()
        stats[0, rows] = maximum
        stats[1, rows] = total * decay + powers.sum(dim=1)
        if entropy:
            stats[2, rows] = decay * (dot + total * shift) + powers.mul_(z).sum(dim=1)


def _gather_target(block: torch.Tensor, target: torch.Tensor, found: torch.Tensor) -> None:
    inside = (target >= 0) & (target < block.shape[1])
    columns = target.clamp(0, block.shape[1] - 1).to(torch.int64)
    found.copy_(torch.where(inside, block.gather(1, columns[:, None])[:, 0], found))


def row_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    maximum: torch.Tensor,
    log_sum: torch.Tensor,
    entropy: torch.Tensor,
    grad_logp: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    scale: float,
) -> None:
    """Overwrite the logits [n, v] of a slice with their gradients.

    dlogits = scale * (g_logp (onehot - p) - g_entropy p (log p + entropy)), p the softmax over the whole vocabulary.
    """
    for rows in _row_blocks(logits):
        log_p = logits[rows].to(maximum.dtype).sub_(maximum[rows, None]).mul_(scale).sub_(log_sum[rows, None])
        slope = grad_logp[rows, None]
        if grad_entropy is None:
            gradient = log_p.exp_().mul_(-slope)
        else:
            slope = slope + grad_entropy[rows, None] * (log_p + entropy[rows, None])
            gradient = log_p.exp_().mul_(slope).neg_()
        inside = (target[rows] >= 0) & (target[rows] < logits.shape[1])
        columns = target[rows].clamp(0, logits.shape[1] - 1).to(torch.int64)
        gradient.scatter_add_(1, columns[:, None], torch.where(inside, grad_logp[rows], 0.0)[:, None])
        logits[rows] = gradient.mul_(scale)


def scale_by(tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply `tensor` by the 0-d `factor`, in place, and return it. A factor of 1 costs nothing on the CPU."""
    if factor.is_cpu and float(factor) == 1.0:  # on a device, this look would wait for all earlier work
        return tensor
    return tensor.mul_(factor)


def grpo_tokens(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    log_ratio: torch.Tensor | None,
    advantages: torch.Tensor,
    importance: torch.Tensor | None,
    ref_logp: torch.Tensor | None,
    entropy: torch.Tensor | None,
    mask: torch.Tensor,
    policy_weight: torch.Tensor,
    penalty_weight: torch.Tensor,
    options: GrpoOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (sums [9], d policy / d log ratio [n], d KL / d logp [n]) of the loss terms of tokens [n].

    The sums are over unmasked tokens: weighted policy term, weighted KL, weighted entropy, number of clipped tokens,
    ratio, old_logp - logp, logp - ref_logp. The last two are maxima: of the ratio and of the negated ratio.

    Args:
        log_ratio: for sequence ratios; it is not clamped. None: logp - old_logp, clamped to [-20, 20].
    """
    live = mask != 0
    drift = torch.where(live, logp - old_logp, 0.0)
    if log_ratio is None:
        log_ratio = drift.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        moving = log_ratio == drift
    else:
        log_ratio = torch.where(live, log_ratio, 0.0)
        moving = live
    ratio = log_ratio.exp()
    advantages = torch.where(live, advantages, 0.0)
    policy, slope, clipped = _clipped_policy(ratio, advantages, options)
    if importance is not None:
        policy, slope = importance * policy, importance * slope
    slope = torch.where(moving, policy_weight * slope, 0.0)
    kl, kl_slope, reference = _reference_kl(logp, ref_logp, drift, live, options)
    zero = logp.new_zeros(())
    infinity = logp.new_full((), -torch.inf)
    sums = [
        (policy_weight * policy).sum(),
        (penalty_weight * kl).sum(),
        zero if entropy is None else (penalty_weight * torch.where(live, entropy, 0.0)).sum(),
        (live & clipped).sum().to(logp.dtype),
        torch.where(live, ratio, 0.0).sum(),
        -drift.sum(),
        reference.sum(),
        torch.cat([torch.where(live, ratio, infinity), infinity[None]]).amax(),
        torch.cat([torch.where(live, -ratio, infinity), infinity[None]]).amax(),
    ]
    return torch.stack(sums), slope, penalty_weight * kl_slope


def _clipped_policy(ratio: torch.Tensor, advantages: torch.Tensor, options: GrpoOptions) -> tuple[torch.Tensor, ...]:
    """Return (-min(surrogates), its slope in the log ratio, whether the clipped surrogate is the smaller one)."""
    plain = ratio * advantages
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages
    clipped = bounded < plain
    gain = torch.minimum(plain, bounded)
    flat = clipped
    if options.dual_clip is not None:
        floor = options.dual_clip * advantages
        floored = (advantages < 0) & (gain < floor)
        gain = torch.where(floored, floor, gain)
        flat = flat | floored
    return -gain, torch.where(flat, 0.0, -plain), clipped


def _reference_kl(
    logp: torch.Tensor,
    ref_logp: torch.Tensor | None,
    drift: torch.Tensor,
    live: torch.Tensor,
    options: GrpoOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (KL estimate, its slope in logp, logp - ref_logp), each [n]."""
    if ref_logp is None:
        zeros = torch.zeros_like(logp)
        return zeros, zeros, zeros
    distance = torch.where(live, logp - ref_logp, 0.0)
    if options.kl_estimator == "k1":
        value, slope = distance, torch.ones_like(distance)
    elif options.kl_estimator == "k2":
        value, slope = distance.square() / 2, distance
    else:
        bounded = distance.clamp(min=-KL_LIMIT)
        inverse = (-bounded).exp()
        value = inverse - 1 + bounded
        slope = torch.where(bounded == distance, 1 - inverse, 0.0)
    held = value.clamp(-KL_LIMIT, KL_LIMIT)
    if options.kl_unbiased:
        slope = drift.exp().clamp(max=KL_LIMIT) * distance
    else:
        slope = torch.where(held == value, slope, 0.0)
    return held, torch.where(live, slope, 0.0), distance


def group_advantage(
    rewards: torch.Tensor, offsets: torch.Tensor, mode: str, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (advantage [N], std [B], zero_variance [B]); group_advantage.group_advantage describes them."""
    lengths = offsets.diff()

    def over_groups(values: torch.Tensor, reduction: str) -> torch.Tensor:
        return torch.segment_reduce(values, reduction, offsets=offsets)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return torch.repeat_interleave(values, lengths, output_size=rewards.numel())

    flat = over_groups(rewards, "max") == over_groups(rewards, "min")
    centred = rewards - spread(over_groups(rewards, "sum") / lengths)
    std = (over_groups(centred.square(), "sum") / (lengths - 1).clamp(min=1)).sqrt()
    std = torch.where(flat, 0.0, std)
    if mode == "group_norm":
        advantage = centred / spread(std + epsilon)
    elif mode == "mean_only":
        advantage = centred
    else:
        advantage = centred * spread(lengths / (lengths - 1).clamp(min=1))
    return torch.where(spread(flat), 0.0, advantage), std, flat
