"""From hidden states to the GRPO loss, with the gradients computed in the forward pass.

The rows are processed in runs. For each run: logits over the whole vocabulary are written to the workspace; from these
come the log-probabilities, the loss and its slope at each token; the logits are turned into their gradients in place;
and from those come dX of the rows and a part of dW. These are three GEMMs, and nothing is computed twice. It requires
each token's weight in the loss beforehand. A loss that couples tokens (sequence-level ratios) is therefore computed by
linear_logprob and grpo_loss instead.

dW is a sum over the runs. It is kept in fp32 if that fits half of the workspace's budget. Otherwise it is kept in the
dtype of the weight and rounded once a run; with few runs (a large workspace) this error stays below the rounding of the
inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from medssr_dist.kernels import checks
from medssr_dist.kernels.backends import Operations
from medssr_dist.kernels.grpo_loss import GrpoLoss, grpo_loss
from medssr_dist.kernels.grpo_options import GrpoOptions
from medssr_dist.kernels.grpo_tokens import (
    TokenInputs,
    Tokens,
    combine_loss,
    compute_token_loss,
    join_sums,
    make_metrics,
    make_tokens,
)
from medssr_dist.kernels.linear_logprob import WORKSPACE_BYTES as LOGPROB_WORKSPACE_BYTES
from medssr_dist.kernels.linear_logprob import (
    HeadGradients,
    SlicePlan,
    compute_logprob,
    empty_stats,
    find_kept_rows,
    finish_stats,
    make_slice_plan,
    whole_vocabulary,
)
from medssr_dist.kernels.matmul import Workspace, accumulator_dtype, multiply_into, split_evenly

WORKSPACE_BYTES = 2**30
ROW_MULTIPLE = 128


def linear_grpo_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    advantages: torch.Tensor,
    *,
    temperature: float = 1.0,
    old_logp: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    rollout_logp: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    options: GrpoOptions | None = None,
    token_count: float | torch.Tensor | None = None,
    sequence_count: float | torch.Tensor | None = None,
    dp_size: int = 1,
    tp_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    backend: str | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> GrpoLoss:
    """Return the GRPO loss (0-d, fp32) and its metrics; differentiable once, in hidden and weight.

    The token tensors (target, advantages, log-probabilities, mask) are all [N] or all [B, T]. hidden has their shape
    with [H] appended; weight [V, H]. The other arguments, and the result, are those of grpo_loss on linear_logprob.

    Raises:
        ValueError: as grpo_loss and linear_logprob; and in a second backward pass: the first hands out the gradients.
    """
    options = options or GrpoOptions()
    checks.require(hidden.dim() == target.dim() + 1, f"{checks.describe('hidden', hidden)}: must be target's + [H]")
    flat_hidden, flat_target = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    flat_mask = None if mask is None else mask.reshape(-1)
    checks.require_linear(flat_hidden, weight, flat_target, flat_mask)
    is_direct = tp_group is None and is_separable(options, old_logp)
    plan = make_slice_plan(
        flat_hidden,
        weight,
        temperature=temperature,
        entropy=options.entropy_coef is not None,
        tp_group=tp_group,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        backend=backend,
        workspace_bytes=workspace_bytes if is_direct else min(workspace_bytes, LOGPROB_WORKSPACE_BYTES),
    )
    checks.require_targets(flat_target, flat_mask, vocab_size or whole_vocabulary(weight, tp_group))
    inputs = TokenInputs(
        advantages, old_logp, ref_logp, rollout_logp, mask, offsets, token_count, sequence_count, dp_size
    )
    if not is_direct:
        logp, entropy = compute_logprob(flat_hidden, weight, flat_target, flat_mask, plan)
        entropy = None if entropy is None else entropy.view(target.shape)
        return grpo_loss(logp.view(target.shape), entropy=entropy, options=options, backend=backend, **inputs._asdict())
    tokens = make_tokens(hidden, target.shape, options, inputs)
    rows = find_kept_rows(flat_mask)
    kept = _KeptRows(rows, tokens if rows is None else tokens.select(rows))
    loss, sums = _LinearGrpoLoss.apply(flat_hidden, weight, flat_target, kept, options, plan, torch.is_grad_enabled())
    return GrpoLoss(loss, make_metrics(sums, tokens, options))


def is_separable(options: GrpoOptions, old_logp: torch.Tensor | None) -> bool:
    """Return whether each token's slope depends on its own log-probability alone."""
    gates_sequences = options.importance_level == "sequence" and old_logp is None
    return options.ratio == "token" and not gates_sequences


class _KeptRows(NamedTuple):
    """The indices of the rows that are computed, None for all of them, and the inputs of these tokens."""

    rows: torch.Tensor | None
    tokens: Tokens


class _LinearGrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        kept: _KeptRows,
        options: GrpoOptions,
        plan: SlicePlan,
        training: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = [training and needed for needed in ctx.needs_input_grad[:2]]
        with torch.autocast(hidden.device.type, enabled=False):
            sums, gradients = _run(hidden, weight, target, kept, options, plan, wanted)
        ctx.gradients = gradients
        ctx.operations = plan.operations
        ctx.mark_non_differentiable(sums)
        return combine_loss(sums, options), sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        gradients: HeadGradients = checks.require_given(
            ctx.gradients, "linear_grpo_loss: its gradients were given away by the first backward"
        )
        ctx.gradients = None
        operations: Operations = ctx.operations
        scaled = (None if each is None else operations.scale_by(each, grad_loss) for each in gradients)
        return *scaled, None, None, None, None, None


def _run(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    kept: _KeptRows,
    options: GrpoOptions,
    plan: SlicePlan,
    wanted: list[bool],
) -> tuple[torch.Tensor, HeadGradients]:
    """Return the sums of the loss over the kept rows, and the gradients that `wanted` (hidden, weight) asks for."""
    rows, tokens = kept
    row_bytes = plan.columns * hidden.element_size()
    runs = list(split_evenly(tokens.mask.numel(), plan.workspace_bytes // row_bytes, ROW_MULTIPLE)) or [(0, 0)]
    workspace = Workspace(runs[0][1], plan.columns, hidden)
    used = weight[: plan.columns]
    d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
    total = _empty_weight_sum(weight, len(runs), plan) if wanted[1] else None
    sums = []
    for start, stop in runs:
        run = slice(start, stop) if rows is None else rows[start:stop]
        chunk, chosen = hidden[run], target[run]
        logits = workspace.logits(stop - start, plan.columns)
        multiply_into(logits, chunk, used.t(), add=False)
        of_run = tokens.select(slice(start, stop))
        sums.append(_turn_into_gradients(logits, chosen, of_run, options, plan, any(wanted)))
        if d_hidden is not None:
            d_hidden[run] = torch.mm(logits, used)
        if total is not None:
            multiply_into(total[: plan.columns], logits.t(), chunk, add=start > 0)
    if total is not None:
        total[plan.columns :].zero_()
        total = total.to(weight.dtype)
    return join_sums(sums), HeadGradients(d_hidden, total)


def _empty_weight_sum(weight: torch.Tensor, runs: int, plan: SlicePlan) -> torch.Tensor:
    """Return memory for dW [V, H]: in fp32 if it is a sum of several runs and that fits half of the budget."""
    wide = accumulator_dtype(weight)
    fits = 2 * weight.numel() * wide.itemsize <= plan.workspace_bytes
    dtype = wide if runs > 1 and fits else weight.dtype
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _turn_into_gradients(
    logits: torch.Tensor,
    target: torch.Tensor,
    tokens: Tokens,
    options: GrpoOptions,
    plan: SlicePlan,
    gradients: bool,
) -> torch.Tensor:
    """Return the sums of these rows' loss; with `gradients`, overwrite logits [n, V] with their gradients."""
    stats = empty_stats(logits.shape[0], logits)
    if logits.shape[0]:
        plan.operations.row_stats(logits, target, stats, plan.scale, plan.entropy)
    row = finish_stats(stats, plan.scale)
    result = compute_token_loss(plan.operations, row.logp, row.entropy if plan.entropy else None, tokens, options)
    if gradients and logits.shape[0]:
        d_entropy = -options.entropy_coef * tokens.penalty_weight if options.entropy_coef else None
        plan.operations.row_gradient(
            logits, target, row.maximum, row.log_sum, row.entropy, result.d_logp, d_entropy, plan.scale
        )
    return result.sums
