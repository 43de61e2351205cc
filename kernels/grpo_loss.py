"""The GRPO loss on given log-probabilities: value, metrics and gradient in one pass over the tokens."""

from __future__ import annotations

import torch

from medssr_dist.kernels import backends, checks
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions
from medssr_dist.kernels.grpo_tokens import Tokens, combine_loss, compute_token_loss, make_metrics, make_tokens


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
) -> tuple[torch.Tensor, GrpoMetrics]:
    """Loss (0-d) and metrics, differentiable in `logp`, and in `entropy` where options.entropy_coef asks for it.

    Token tensors are all [B, T], a sequence a row, or all [N] with offsets [B+1] (none: one sequence). Masked tokens
    count for nothing, and may hold anything. old_logp None means exactly on-policy: logp, detached.
    token_count, sequence_count: unmasked tokens and non-empty sequences of the whole optimizer step over all ranks;
    None counts those given here. dp_size undoes the averaging of gradients over data-parallel ranks.
    """
    options = options or GrpoOptions()
    checks.require_floating("logp", logp)
    needs_entropy = options.entropy_coef is not None
    checks.require(entropy is not None or not needs_entropy, f"entropy_coef {options.entropy_coef} needs entropy")
    checks.require_like("entropy", entropy, "logp", logp)
    tokens = make_tokens(
        logp,
        logp.shape,
        options,
        advantages=advantages,
        old_logp=old_logp,
        ref_logp=ref_logp,
        rollout_logp=rollout_logp,
        mask=mask,
        offsets=offsets,
        token_count=token_count,
        sequence_count=sequence_count,
        dp_size=dp_size,
    )
    operations = backends.select_operations(backend, logp)
    loss, sums = _GrpoLoss.apply(logp, entropy if needs_entropy else None, tokens, options, operations)
    return loss, make_metrics(sums, tokens, options)


class _GrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logp, entropy, tokens: Tokens, options: GrpoOptions, operations):
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
    def backward(ctx, grad_loss, _):
        d_logp, penalty_weight = ctx.saved_tensors
        shape, dtype, entropy_dtype = ctx.like
        d_entropy = None
        if entropy_dtype is not None:
            slope = -ctx.options.entropy_coef * grad_loss
            d_entropy = (slope * penalty_weight).reshape(shape).to(entropy_dtype)
        return (grad_loss * d_logp).reshape(shape).to(dtype), d_entropy, None, None, None
