"""The GRPO loss from given log-probabilities. One pass over the tokens computes value, metrics and gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from medssr_dist.kernels import backends, checks
from medssr_dist.kernels.backends import Operations
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions
from medssr_dist.kernels.grpo_tokens import (
    TokenInputs,
    Tokens,
    combine_loss,
    compute_token_loss,
    make_metrics,
    make_tokens,
)


class GrpoLoss(NamedTuple):
    """The loss (0-d, differentiable) and its metrics.

    >>> loss, metrics = grpo_loss(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0]))
    >>> float(loss), float(metrics.ratio_mean)  # on-policy: both ratios are 1
    (-0.5, 1.0)
    """

    loss: torch.Tensor
    metrics: GrpoMetrics


def grpo_loss(
    logp: torch.Tensor,
    advantages: torch.Tensor,
    *,
    old_logp: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    rollout_logp: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    options: GrpoOptions | None = None,
    token_count: float | torch.Tensor | None = None,
    sequence_count: float | torch.Tensor | None = None,
    dp_size: int = 1,
    backend: str | None = None,
) -> GrpoLoss:
    """Return the GRPO loss and its metrics; differentiable in `logp`, and in `entropy` with options.entropy_coef.

    All token tensors are [B, T], one sequence a row, or all are [N]. The loss is that of https://arxiv.org/abs/2402.03300,
    equation 3, with the changes that GrpoOptions names.

    Args:
        old_logp: of the policy that the ratio is taken against; None: exactly on-policy, `logp` detached.
        ref_logp: of the reference policy, for the KL. rollout_logp: of the engine that sampled, for the correction.
        mask: tokens with 0 are ignored, and may hold any value, NaN included.
        offsets: [B+1], where the sequences of flat tokens [N] begin; None: one sequence.
        token_count, sequence_count: unmasked tokens, and sequences that have one, of the whole optimizer step over all
            ranks; None: those of this call.
        dp_size: data-parallel ranks; the loss is multiplied by it, because the ranks' gradients are averaged.

    Raises:
        ValueError: an input of a wrong shape, dtype or device, or one that the options need and that is not given.
    """
    options = options or GrpoOptions()
    checks.require_floating("logp", logp)
    needs_entropy = options.entropy_coef is not None
    checks.require(entropy is not None or not needs_entropy, f"entropy_coef {options.entropy_coef} needs entropy")
    checks.require_like("entropy", entropy, "logp", logp)
    inputs = TokenInputs(
        advantages, old_logp, ref_logp, rollout_logp, mask, offsets, token_count, sequence_count, dp_size
    )
    tokens = make_tokens(logp, logp.shape, options, inputs)
    operations = backends.select_operations(backend, logp)
    loss, sums = _GrpoLoss.apply(logp, entropy if needs_entropy else None, tokens, options, operations)
    return GrpoLoss(loss, make_metrics(sums, tokens, options))


class _GrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logp: torch.Tensor,
        entropy: torch.Tensor | None,
        tokens: Tokens,
        options: GrpoOptions,
        operations: Operations,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = tokens.mask.dtype
        flat_entropy = None if entropy is None else entropy.reshape(-1).to(dtype)
        result = compute_token_loss(operations, logp.reshape(-1).to(dtype), flat_entropy, tokens, options)
        ctx.save_for_backward(result.d_logp, tokens.penalty_weight)
        ctx.options = options
        ctx.like = logp.shape, logp.dtype, None if entropy is None else entropy.dtype
        ctx.mark_non_differentiable(result.sums)
        return combine_loss(result.sums, options), result.sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        d_logp, penalty_weight = ctx.saved_tensors
        shape, dtype, entropy_dtype = ctx.like
        d_entropy = None
        if entropy_dtype is not None:
            slope = -ctx.options.entropy_coef * grad_loss
            d_entropy = (slope * penalty_weight).reshape(shape).to(entropy_dtype)
        return (grad_loss * d_logp).reshape(shape).to(dtype), d_entropy, None, None, None
