"""What both GRPO losses share: the inputs of the tokens, their weights in the sum, the metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import torch

from medssr_dist.kernels import checks
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions


@dataclass(frozen=True)
class Tokens:
    """Flat inputs [N], in the dtype of the computation. `lengths` [B] counts tokens of each sequence, masked or not.

    importance and dropped are those of importance_weights, None until old_logp is known.
    """

    advantages: torch.Tensor
    mask: torch.Tensor
    policy_weight: torch.Tensor
    penalty_weight: torch.Tensor
    lengths: torch.Tensor
    old_logp: torch.Tensor | None
    ref_logp: torch.Tensor | None
    rollout_logp: torch.Tensor | None
    importance: torch.Tensor | None = None
    dropped: torch.Tensor | None = None

    def at(self, rows: torch.Tensor | slice) -> Tokens:
        """These rows alone; sequences are cut, so `lengths` no longer holds."""
        parts = {name: value[rows] for name, value in vars(self).items() if value is not None and name != "lengths"}
        return replace(self, **parts)


def make_tokens(
    like: torch.Tensor,
    shape: torch.Size,
    options: GrpoOptions,
    *,
    advantages: torch.Tensor,
    old_logp: torch.Tensor | None,
    ref_logp: torch.Tensor | None,
    rollout_logp: torch.Tensor | None,
    mask: torch.Tensor | None,
    offsets: torch.Tensor | None,
    token_count: float | torch.Tensor | None,
    sequence_count: float | torch.Tensor | None,
    dp_size: int,
) -> Tokens:
    """Check the inputs, all of `shape` ([N] or [B, T]), and weigh the tokens; `like` gives dtype and device."""
    named = {"advantages": advantages, "old_logp": old_logp, "ref_logp": ref_logp, "rollout_logp": rollout_logp}
    expected = torch.empty(shape, dtype=like.dtype, device="meta")
    for name, value in {**named, "mask": mask}.items():
        if value is not None:
            fits = value.shape == expected.shape and value.device == like.device
            checks.require(fits, f"{checks.describe(name, value)}: must be {tuple(shape)} on {like.device}")
    checks.require(ref_logp is not None or options.kl_coef == 0, f"kl_coef {options.kl_coef} needs ref_logp")
    needs_rollout = options.importance_level != "off"
    checks.require(rollout_logp is not None or not needs_rollout, "importance correction needs rollout_logp")
    checks.require(dp_size >= 1, f"dp_size must be at least 1, not {dp_size}")
    dtype = torch.promote_types(like.dtype, torch.float32)
    flat = {name: None if value is None else value.detach().reshape(-1).to(dtype) for name, value in named.items()}
    mask = torch.ones(shape, device=like.device) if mask is None else mask
    mask = (mask.reshape(-1) != 0).to(dtype)
    lengths = _lengths(shape, offsets, like.device)

    def weights(aggregation: str) -> torch.Tensor:
        return dp_size * _weights(aggregation, mask, lengths, token_count, sequence_count, options.fixed_length)

    policy_weight = weights(options.aggregation)
    same = options.penalty_aggregation in (None, options.aggregation)
    penalty_weight = policy_weight if same else weights(options.penalty_aggregation)
    tokens = Tokens(mask=mask, policy_weight=policy_weight, penalty_weight=penalty_weight, lengths=lengths, **flat)
    return tokens if tokens.old_logp is None else with_importance(tokens.old_logp, tokens, options)


def _lengths(shape: torch.Size, offsets: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    checks.require(len(shape) in (1, 2), f"tokens must be [N] or [B, T], not {tuple(shape)}")
    checks.require(offsets is None or len(shape) == 1, "offsets go with flat tokens [N], not with [B, T]")
    if offsets is not None:
        checks.require_offsets(offsets, shape[0], unit="sequence", allow_empty=True)
        return offsets.to(device=device, dtype=torch.int64).diff()
    sequences, length = (1, shape[0]) if len(shape) == 1 else shape
    return torch.full((sequences,), length, dtype=torch.int64, device=device)


def sum_over_sequences(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of values [N] over each sequence: [B]."""
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return torch.segment_reduce(values, "sum", offsets=offsets)


def repeat_to_tokens(values: torch.Tensor, lengths: torch.Tensor, total: int) -> torch.Tensor:
    """Each sequence's value [B] at each of its tokens: [N]."""
    return torch.repeat_interleave(values, lengths, output_size=total)


def _weights(
    aggregation: str,
    mask: torch.Tensor,
    lengths: torch.Tensor,
    token_count: float | torch.Tensor | None,
    sequence_count: float | torch.Tensor | None,
    fixed_length: int | None,
) -> torch.Tensor:
    """Weight [N] of each token in the sum. Counts that are not given are those of the mask."""
    if aggregation == "token_mean":
        return mask / (mask.sum().clamp(min=1) if token_count is None else token_count)
    counts = sum_over_sequences(mask, lengths)
    if sequence_count is None:
        sequence_count = (counts > 0).sum().clamp(min=1)
    if aggregation == "fixed_length":
        return mask / (sequence_count * fixed_length)
    return mask / (repeat_to_tokens(counts.clamp(min=1), lengths, mask.numel()) * sequence_count)


def with_importance(old_logp: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> Tokens:
    """`tokens` with the weight of each one's policy term, where the options ask for a correction."""
    if options.importance_level == "off" or options.ratio == "sequence" or tokens.importance is not None:
        return tokens
    importance, dropped = _importance(old_logp, tokens, options)
    return replace(tokens, importance=importance, dropped=dropped)


def _importance(old_logp: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight [N] of each token's policy term, dropped [N]: sums to the tokens or sequences outside the gate)."""
    live = tokens.mask != 0
    log_ratio = torch.where(live, old_logp - tokens.rollout_logp, 0.0)
    ratio = log_ratio.exp()
    by_ratio = options.importance_gate == "ratio"
    statistic = log_ratio if by_ratio else _divergence(old_logp, tokens, options)
    share = tokens.mask
    if options.importance_level == "sequence":
        statistic = _sequence_mean(statistic, tokens)
        counts = sum_over_sequences(tokens.mask, tokens.lengths).clamp(min=1)
        share = tokens.mask / repeat_to_tokens(counts, tokens.lengths, tokens.mask.numel())
    statistic = statistic.exp() if by_ratio else statistic
    inside = (statistic >= options.importance_low) & (statistic <= options.importance_high)
    dropped = torch.where(inside, 0.0, share)
    if options.importance_mode == "clip":
        return statistic.clamp(options.importance_low, options.importance_high), dropped
    return torch.where(inside, ratio, 0.0), dropped


def _divergence(old_logp: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> torch.Tensor:
    """Binary KL or total variation of the rollout's from the trainer's policy, at the sampled token alone."""
    rollout = tokens.rollout_logp.exp().clamp(1e-6, 1 - 1e-6)
    trained = old_logp.exp().clamp(1e-6, 1 - 1e-6)
    if options.importance_gate == "tv":
        return (rollout - trained).abs()
    return rollout * (rollout / trained).log() + (1 - rollout) * ((1 - rollout) / (1 - trained)).log()


@dataclass(frozen=True)
class TokenLoss:
    """Of some tokens: `sums` (see torch_ops.grpo_tokens, then rollout drift and tokens dropped), slopes in logp."""

    sums: torch.Tensor
    d_logp: torch.Tensor


def compute_token_loss(
    operations: ModuleType,
    logp: torch.Tensor,
    entropy: torch.Tensor | None,
    tokens: Tokens,
    options: GrpoOptions,
) -> TokenLoss:
    """Loss terms and slopes of tokens whose log-probabilities [n] are known."""
    old_logp = logp if tokens.old_logp is None else tokens.old_logp
    tokens = with_importance(old_logp, tokens, options)
    log_ratio = None
    if options.ratio == "sequence":
        base = old_logp if options.importance_level == "off" else tokens.rollout_logp
        log_ratio = _sequence_mean(logp - base, tokens)
    extra = logp.new_zeros(2)
    if tokens.importance is not None:
        drift = torch.where(tokens.mask != 0, tokens.rollout_logp - old_logp, 0.0)
        extra = torch.stack([drift.sum(), tokens.dropped.sum()])
    sums, d_policy, d_kl = operations.grpo_tokens(
        logp,
        old_logp,
        log_ratio,
        tokens.advantages,
        tokens.importance,
        tokens.ref_logp,
        entropy,
        tokens.mask,
        tokens.policy_weight,
        tokens.penalty_weight,
        options,
    )
    if options.ratio == "sequence":
        d_policy = _through_sequence_mean(d_policy, tokens)
    return TokenLoss(torch.cat([sums, extra]), d_policy + options.kl_coef * d_kl)


def _sequence_mean(values: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Each sequence's mean over its unmasked tokens, at each of its tokens."""
    counts = sum_over_sequences(tokens.mask, tokens.lengths).clamp(min=1)
    sums = sum_over_sequences(torch.where(tokens.mask != 0, values, 0.0), tokens.lengths)
    return repeat_to_tokens(sums / counts, tokens.lengths, values.numel())


def _through_sequence_mean(slopes: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Transpose of _sequence_mean."""
    counts = sum_over_sequences(tokens.mask, tokens.lengths).clamp(min=1)
    sums = sum_over_sequences(slopes, tokens.lengths)
    return tokens.mask * repeat_to_tokens(sums / counts, tokens.lengths, slopes.numel())


def combine_loss(sums: torch.Tensor, options: GrpoOptions) -> torch.Tensor:
    return sums[0] + options.kl_coef * sums[1] - (options.entropy_coef or 0.0) * sums[2]


def join_sums(parts: list[torch.Tensor]) -> torch.Tensor:
    """Sums of several runs of tokens in one: the two extremes by maximum, the rest added."""
    stacked = torch.stack(parts)
    total = stacked.sum(0)
    total[7:9] = stacked[:, 7:9].amax(0)
    return total


def make_metrics(sums: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> GrpoMetrics:
    sums = sums.detach().float()
    count = tokens.mask.sum().float()
    share = sums / count.clamp(min=1)
    units = count
    if options.importance_level == "sequence":
        units = (sum_over_sequences(tokens.mask, tokens.lengths) > 0).sum()
    some = count > 0
    return GrpoMetrics(
        policy_loss=sums[0],
        kl_loss=sums[1],
        entropy=sums[2],
        clip_share=share[3],
        ratio_mean=share[4],
        ratio_min=torch.where(some, -sums[8], 0.0),
        ratio_max=torch.where(some, sums[7], 0.0),
        old_kl=share[5],
        reference_log_ratio=share[6],
        rollout_kl=share[9],
        importance_dropped=sums[10] / units.clamp(min=1),
    )
