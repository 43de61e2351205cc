"""What both GRPO losses share: inputs by token, each token's weight in the sum, importance correction and metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from medssr_dist.kernels import checks
from medssr_dist.kernels.backends import Operations
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions

_LOG_2 = math.log(2)
_MOST_LOG_RATIO = 80.0  # beyond it, a ratio is infinite in float32
_EXTREMES = [7, 8, 11]  # among the sums of TokenLoss


class TokenInputs(NamedTuple):
    """The arguments that grpo_loss and linear_grpo_loss share, as the caller gave them; grpo_loss documents them."""

    advantages: torch.Tensor
    old_logp: torch.Tensor | None
    ref_logp: torch.Tensor | None
    rollout_logp: torch.Tensor | None
    mask: torch.Tensor | None
    offsets: torch.Tensor | None
    token_count: float | torch.Tensor | None
    sequence_count: float | torch.Tensor | None
    dp_size: int


@dataclass(frozen=True)
class Tokens:
    """Inputs of N tokens, flat [N], in the dtype of the computation.

    Attributes:
        mask: 1 for tokens that count, 0 for the others.
        policy_weight, penalty_weight: weight of the token in the sum of the policy term, and of KL and entropy.
        lengths: [B], tokens of each sequence, masked ones included.
        importance, dropped: the results of `_importance`; None until old_logp is known, or without correction.
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

    def select(self, rows: torch.Tensor | slice) -> Tokens:
        """Return these tokens alone. `lengths` is not valid for them: the selection may cut a sequence."""
        parts = {name: value[rows] for name, value in vars(self).items() if value is not None and name != "lengths"}
        return replace(self, **parts)


def make_tokens(like: torch.Tensor, shape: torch.Size, options: GrpoOptions, inputs: TokenInputs) -> Tokens:
    """Check the inputs, all of `shape` ([N] or [B, T]), and compute the weight of each token.

    Args:
        like: gives dtype and device. The computation is in float32 at least.

    Raises:
        ValueError: an input of a wrong shape or device, or one that the options need and that is not given.
    """
    _check_inputs(like, shape, options, inputs)
    dtype = torch.promote_types(like.dtype, torch.float32)

    def flatten(values: torch.Tensor) -> torch.Tensor:
        return values.detach().reshape(-1).to(dtype)

    def flatten_optional(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else flatten(values)

    mask = torch.ones(shape, device=like.device) if inputs.mask is None else inputs.mask
    mask = (mask.reshape(-1) != 0).to(dtype)
    lengths = _lengths(shape, inputs.offsets, like.device)

    def weigh(aggregation: str) -> torch.Tensor:
        return inputs.dp_size * _weights(aggregation, mask, lengths, options.fixed_length, inputs)

    policy_weight = weigh(options.aggregation)
    penalties = options.penalty_aggregation or options.aggregation
    tokens = Tokens(
        advantages=flatten(inputs.advantages),
        mask=mask,
        policy_weight=policy_weight,
        penalty_weight=policy_weight if penalties == options.aggregation else weigh(penalties),
        lengths=lengths,
        old_logp=flatten_optional(inputs.old_logp),
        ref_logp=flatten_optional(inputs.ref_logp),
        rollout_logp=flatten_optional(inputs.rollout_logp),
    )
    return tokens if tokens.old_logp is None else with_importance(tokens.old_logp, tokens, options)


def _check_inputs(like: torch.Tensor, shape: torch.Size, options: GrpoOptions, inputs: TokenInputs) -> None:
    for name in ("advantages", "old_logp", "ref_logp", "rollout_logp", "mask"):
        value: torch.Tensor | None = getattr(inputs, name)
        if value is not None:
            fits = value.shape == shape and value.device == like.device
            checks.require(fits, f"{checks.describe(name, value)}: must be {tuple(shape)} on {like.device}")
    checks.require(inputs.ref_logp is not None or options.kl_coef == 0, f"kl_coef {options.kl_coef} needs ref_logp")
    needs_rollout = options.importance_level != "off"
    checks.require(inputs.rollout_logp is not None or not needs_rollout, "importance correction needs rollout_logp")
    checks.require(inputs.dp_size >= 1, f"dp_size must be at least 1, not {inputs.dp_size}")


def _lengths(shape: torch.Size, offsets: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Return the length [B] of each sequence, in tokens, masked ones included."""
    checks.require(len(shape) in (1, 2), f"tokens must be [N] or [B, T], not {tuple(shape)}")
    checks.require(offsets is None or len(shape) == 1, "offsets go with flat tokens [N], not with [B, T]")
    if offsets is not None:
        checks.require_offsets(offsets, shape[0], unit="sequence", allow_empty=True)
        return offsets.to(device=device, dtype=torch.int64, non_blocking=offsets.is_cpu).diff()
    sequences, length = (1, shape[0]) if len(shape) == 1 else shape
    return torch.full((sequences,), length, dtype=torch.int64, device=device)


def sum_over_sequences(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the sum [B] of values [N] over each sequence."""
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return torch.segment_reduce(values, "sum", offsets=offsets)


def repeat_to_tokens(values: torch.Tensor, lengths: torch.Tensor, total: int) -> torch.Tensor:
    """Return each sequence's value [B] at each of its tokens, [N], N = `total`."""
    return torch.repeat_interleave(values, lengths, output_size=total)


def _weights(
    aggregation: str, mask: torch.Tensor, lengths: torch.Tensor, fixed_length: int | None, inputs: TokenInputs
) -> torch.Tensor:
    """Return the weight [N] of each token in the sum. Counts that are not given are taken from the mask."""
    if aggregation == "token_mean":
        return mask / (mask.sum().clamp(min=1) if inputs.token_count is None else inputs.token_count)
    counts = sum_over_sequences(mask, lengths)
    sequences = inputs.sequence_count
    if sequences is None:
        sequences = (counts > 0).sum().clamp(min=1)
    if aggregation == "fixed_length":
        return mask / (sequences * checks.require_given(fixed_length, "aggregation 'fixed_length' needs fixed_length"))
    return mask / (repeat_to_tokens(counts.clamp(min=1), lengths, mask.numel()) * sequences)


def with_importance(old_logp: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> Tokens:
    """Return `tokens` with the importance weight of each one's policy term, where the options ask for a correction."""
    if options.importance_level == "off" or options.ratio == "sequence" or tokens.importance is not None:
        return tokens
    importance, dropped = _importance(old_logp, tokens, options)
    return replace(tokens, importance=importance, dropped=dropped)


def _importance(old_logp: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (weight [N] of each token's policy term, dropped [N]).

    The sum of `dropped` is the number of tokens, or of sequences, outside the interval of the options.
    """
    live = tokens.mask != 0
    rollout_logp = _rollout_logp(tokens)
    log_ratio = torch.where(live, old_logp - rollout_logp, 0.0)
    ratio = log_ratio.exp()
    by_ratio = options.importance_gate == "ratio"
    statistic = log_ratio if by_ratio else _divergence(old_logp, rollout_logp, options)
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


def _rollout_logp(tokens: Tokens) -> torch.Tensor:
    return checks.require_given(tokens.rollout_logp, "importance correction needs rollout_logp")


def _divergence(old_logp: torch.Tensor, rollout_logp: torch.Tensor, options: GrpoOptions) -> torch.Tensor:
    """Return the binary KL or the total variation [N] between rollout and old policy, at the sampled token alone."""
    rollout = rollout_logp.exp().clamp(1e-6, 1 - 1e-6)
    trained = old_logp.exp().clamp(1e-6, 1 - 1e-6)
    if options.importance_gate == "tv":
        return (rollout - trained).abs()
    return rollout * (rollout / trained).log() + (1 - rollout) * ((1 - rollout) / (1 - trained)).log()


class TokenLoss(NamedTuple):
    """The loss of some tokens: sums [13] and slopes d loss / d logp [n].

    `sums` holds the nine of torch_ops.grpo_tokens, then the three of `_compare_with_rollout` and the tokens dropped.
    """

    sums: torch.Tensor
    d_logp: torch.Tensor


def compute_token_loss(
    operations: Operations,
    logp: torch.Tensor,
    entropy: torch.Tensor | None,
    tokens: Tokens,
    options: GrpoOptions,
) -> TokenLoss:
    """Return the loss terms and the slopes of tokens from their log-probabilities [n]."""
    old_logp = logp if tokens.old_logp is None else tokens.old_logp
    tokens = with_importance(old_logp, tokens, options)
    log_ratio = None
    if options.ratio == "sequence":
        base = old_logp if options.importance_level == "off" else _rollout_logp(tokens)
        log_ratio = _sequence_mean(logp - base, tokens)
    dropped = logp.new_zeros(1) if tokens.dropped is None else tokens.dropped.sum()[None]
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
    compared = _compare_with_rollout(old_logp, tokens)
    return TokenLoss(torch.cat([sums, compared, dropped]), d_policy + options.kl_coef * d_kl)


def _compare_with_rollout(old_logp: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return [3]: the sum of rollout_logp - old_logp, the tokens where it is beyond log 2, and its largest size."""
    if tokens.rollout_logp is None or not tokens.mask.numel():
        return old_logp.new_zeros(3)
    drift = torch.where(tokens.mask != 0, tokens.rollout_logp - old_logp, 0.0)
    return torch.stack([drift.sum(), (drift.abs() > _LOG_2).sum(), drift.abs().max()])


def _sequence_mean(values: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return the mean over each sequence's unmasked tokens, at each of its tokens: [N]."""
    counts = sum_over_sequences(tokens.mask, tokens.lengths).clamp(min=1)
    sums = sum_over_sequences(torch.where(tokens.mask != 0, values, 0.0), tokens.lengths)
    return repeat_to_tokens(sums / counts, tokens.lengths, values.numel())


def _through_sequence_mean(slopes: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return slopes [N] propagated backwards through `_sequence_mean` (its transpose)."""
    counts = sum_over_sequences(tokens.mask, tokens.lengths).clamp(min=1)
    sums = sum_over_sequences(slopes, tokens.lengths)
    return tokens.mask * repeat_to_tokens(sums / counts, tokens.lengths, slopes.numel())


def combine_loss(sums: torch.Tensor, options: GrpoOptions) -> torch.Tensor:
    """Return the loss (0-d) from the sums of its terms."""
    return sums[0] + options.kl_coef * sums[1] - (options.entropy_coef or 0.0) * sums[2]


def join_sums(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the sums over several runs of tokens: the maximum of the three extremes, the total of the others."""
    stacked = torch.stack(parts)
    total = stacked.sum(0)
    total[_EXTREMES] = stacked[:, _EXTREMES].amax(0)
    return total


def make_metrics(sums: torch.Tensor, tokens: Tokens, options: GrpoOptions) -> GrpoMetrics:
    """Return the metrics from the sums over all tokens."""
    sums = sums.detach().float()
    count = tokens.mask.sum().float()
    share = sums / count.clamp(min=1)
    units = count
    if options.importance_level == "sequence":
        units = (sum_over_sequences(tokens.mask, tokens.lengths) > 0).sum()
    some, has_rollout = count > 0, tokens.rollout_logp is not None
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
        rollout_beyond_2x=share[10],
        rollout_ratio_max=torch.where(some, sums[11].clamp(max=_MOST_LOG_RATIO).exp(), 0.0) * has_rollout,
        importance_dropped=sums[12] / units.clamp(min=1),
    )
