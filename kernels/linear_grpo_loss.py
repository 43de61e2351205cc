"""Hidden states to GRPO loss, with the gradients computed in the forward pass.

A run of rows at a time: logits over the whole vocabulary in the workspace, log-probabilities, the loss and its slope
at each token, logits turned into their gradients in place, and from those dX of the rows and a part of dW. Three
GEMMs in all, nothing is computed twice; this needs each token's weight in the loss beforehand, so a loss that ties
tokens together (sequence-level ratios) goes through linear_logprob and grpo_loss instead.

dW is a sum over the runs. It is kept in fp32 where that fits half of the workspace's budget; otherwise in the dtype of
the weight, which rounds once a run: few runs (a large workspace) keep that below the rounding of the inputs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from medssr_dist.kernels import checks
from medssr_dist.kernels.grpo_loss import grpo_loss
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions
from medssr_dist.kernels.grpo_tokens import (
    Tokens,
    combine_loss,
    compute_token_loss,
    join_sums,
    make_metrics,
    make_tokens,
)
from medssr_dist.kernels.linear_logprob import WORKSPACE_BYTES as LOGPROB_WORKSPACE_BYTES
from medssr_dist.kernels.linear_logprob import (
    SlicePlan,
    empty_stats,
    find_kept_rows,
    finish_stats,
    linear_logprob,
    make_slice_plan,
)
from medssr_dist.kernels.matmul import Workspace, accumulator_dtype, even_parts, multiply_into

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
) -> tuple[torch.Tensor, GrpoMetrics]:
    """Loss (0-d, fp32) and metrics, differentiable once in hidden and weight.

    Token tensors (target, advantages, the log-probabilities, mask) are all [N] or all [B, T], hidden the same with
    [H] behind, weight [V, H]. The rest is as in grpo_loss and linear_logprob, in whose terms the result is the same.
    """
    options = options or GrpoOptions()
    checks.require(hidden.dim() == target.dim() + 1, f"{checks.describe('hidden', hidden)}: must be target's + [H]")
    flat_hidden, flat_target = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    flat_mask = None if mask is None else mask.reshape(-1)
    checks.require_linear(flat_hidden, weight, flat_target, flat_mask)
    inputs = {
        "advantages": advantages,
        "old_logp": old_logp,
        "ref_logp": ref_logp,
        "rollout_logp": rollout_logp,
        "mask": mask,
        "offsets": offsets,
        "token_count": token_count,
        "sequence_count": sequence_count,
        "dp_size": dp_size,
    }
    has_entropy = options.entropy_coef is not None
    if tp_group is not None or not is_separable(options, old_logp):
        outputs = linear_logprob(
            flat_hidden,
            weight,
            flat_target,
            mask=flat_mask,
            temperature=temperature,
            return_entropy=has_entropy,
            tp_group=tp_group,
            vocab_start=vocab_start,
            vocab_size=vocab_size,
            backend=backend,
            workspace_bytes=min(workspace_bytes, LOGPROB_WORKSPACE_BYTES),
        )
        logp, entropy = outputs if has_entropy else (outputs, None)
        entropy = entropy.view(target.shape) if has_entropy else None
        return grpo_loss(logp.view(target.shape), entropy=entropy, options=options, backend=backend, **inputs)
    plan = make_slice_plan(
        flat_hidden, weight, temperature, has_entropy, None, vocab_start, vocab_size, backend, workspace_bytes
    )
    checks.require_targets(flat_target, flat_mask, plan.columns)
    tokens = make_tokens(hidden, target.shape, options, **inputs)
    rows = find_kept_rows(flat_mask)
    chosen = tokens if rows is None else tokens.at(rows)
    loss, sums = _LinearGrpoLoss.apply(
        flat_hidden, weight, flat_target, rows, chosen, options, plan, torch.is_grad_enabled()
    )
    return loss, make_metrics(sums, tokens, options)


def is_separable(options: GrpoOptions, old_logp: torch.Tensor | None) -> bool:
    """Whether each token's slope follows from its own log-probability alone."""
    gates_sequences = options.importance_level == "sequence" and old_logp is None
    return options.ratio == "token" and not gates_sequences


class _LinearGrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, target, rows, tokens: Tokens, options: GrpoOptions, plan: SlicePlan, training: bool
    ):
        wanted = [training and needed for needed in ctx.needs_input_grad[:2]]
        with torch.autocast(hidden.device.type, enabled=False):
            sums, d_hidden, d_weight = _run(hidden, weight, target, rows, tokens, options, plan, wanted)
        ctx.gradients = d_hidden, d_weight
        ctx.operations = plan.operations
        ctx.mark_non_differentiable(sums)
        return combine_loss(sums, options), sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _):
        checks.require(
            ctx.gradients is not None, "linear_grpo_loss: its gradients were given away by the first backward"
        )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if each is None else ctx.operations.scale_by(each, grad_loss) for each in gradients)
        return *scaled, None, None, None, None, None, None


def _run(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    rows: torch.Tensor | None,
    tokens: Tokens,
    options: GrpoOptions,
    plan: SlicePlan,
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(sums, d hidden, d weight) over the kept rows; `tokens` holds those rows alone."""
    kept = tokens.mask.numel()
    row_bytes = plan.columns * hidden.element_size()
    runs = list(even_parts(kept, plan.workspace_bytes // row_bytes, ROW_MULTIPLE)) or [(0, 0)]
    workspace = Workspace(runs[0][1], plan.columns, hidden)
    used = weight[: plan.columns]
    d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
    total = _weight_sum(weight, len(runs), plan) if wanted[1] else None
    sums = []
    for start, stop in runs:
        run = slice(start, stop) if rows is None else rows[start:stop]
        chunk, chosen = hidden[run], target[run]
        logits = workspace.logits(stop - start, plan.columns)
        multiply_into(logits, chunk, used.t(), add=False)
        sums.append(_logits_to_gradients(logits, chosen, tokens.at(slice(start, stop)), options, plan, any(wanted)))
        if d_hidden is not None:
            d_hidden[run] = torch.mm(logits, used)
        if total is not None:
            multiply_into(total[: plan.columns], logits.t(), chunk, add=start > 0)
    if total is not None:
        total[plan.columns :].zero_()
        total = total.to(weight.dtype)
    return join_sums(sums), d_hidden, total


def _weight_sum(weight: torch.Tensor, runs: int, plan: SlicePlan) -> torch.Tensor:
    wide = accumulator_dtype(weight)
    fits = 2 * weight.numel() * wide.itemsize <= plan.workspace_bytes
    dtype = wide if runs > 1 and fits else weight.dtype
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _logits_to_gradients(
    logits: torch.Tensor,
    target: torch.Tensor,
    tokens: Tokens,
    options: GrpoOptions,
    plan: SlicePlan,
    gradients: bool,
) -> torch.Tensor:
    """The sums of these rows' loss; logits [n, V] become their gradients, in place, where `gradients` asks."""
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
