"""Log-probability of the next token straight from the hidden states, without logits [N, V].

The vocabulary is taken in slices: cuBLAS writes the logits of a slice to a bounded workspace, and a row kernel takes
them into each row's running max, sum and entropy (online softmax). The backward pass writes the slice again, turns it
into its gradient in place, and from that writes the slice's rows of dW once and adds to dX in fp32. Four GEMMs in all,
against three for logits that are kept; the workspace is read once forward, and read and written once backward.

Logits are rounded to the dtype of the inputs, as torch's own are; everything after that is fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist

from medssr_dist.kernels import backends, checks
from medssr_dist.kernels.matmul import Workspace, accumulator_dtype, even_parts, multiply_into

WORKSPACE_BYTES = 512 * 2**20
SLICE_MULTIPLE = 256  # columns; also the least that a slice holds, whatever the budget


class SlicePlan(NamedTuple):
    """What does not vary with the rows: `columns` are the real ones of `weight`; the rest is padding."""

    operations: ModuleType
    scale: float
    columns: int
    vocab_start: int
    tp_group: dist.ProcessGroup | None
    entropy: bool
    workspace_bytes: int

    def slices(self, rows: int, itemsize: int) -> list[tuple[int, int]]:
        return list(even_parts(self.columns, self.workspace_bytes // (rows * itemsize), SLICE_MULTIPLE))


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
    return_entropy: bool = False,
    tp_group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    backend: str | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax(hidden @ weight.T / temperature) at `target`: [N] in fp32, and the entropy [N] where asked.

    hidden [N, H], weight [V, H], target [N]. Differentiable in hidden and weight through both outputs. Rows with
    mask [N] == 0 give 0, get no gradient and cost nothing; their targets may be anything.
    tp_group: `weight` is this rank's rows of the vocabulary, the first of which is `vocab_start`; hidden, target, mask
    and the upstream gradients are the same on each rank, and so is what comes back. Targets count over the whole.
    vocab_size: real size of the whole vocabulary where `weight` is padded; rows from there on are never read and get
    zero gradients. Without it, shards under `tp_group` must be of one size.
    backend: "triton", "torch" or None (Triton on CUDA). workspace_bytes bounds the slice of logits held.
    ValueError names the tensor that does not fit.
    """
    checks.require_linear(hidden, weight, target, mask)
    plan = make_slice_plan(
        hidden, weight, temperature, return_entropy, tp_group, vocab_start, vocab_size, backend, workspace_bytes
    )
    checks.require_targets(target, mask, vocab_size or _whole_vocabulary(weight, tp_group))
    logp, entropy = _LinearLogprob.apply(hidden, weight, target, mask, plan)
    return (logp, entropy) if return_entropy else logp


def make_slice_plan(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    entropy: bool,
    tp_group: dist.ProcessGroup | None,
    vocab_start: int,
    vocab_size: int | None,
    backend: str | None,
    workspace_bytes: int,
) -> SlicePlan:
    checks.require_positive("temperature", temperature)
    checks.require_positive("workspace_bytes", workspace_bytes)
    checks.require(vocab_start >= 0, f"vocab_start must not be negative, not {vocab_start}")
    checks.require(tp_group is not None or vocab_start == 0, f"vocab_start {vocab_start} needs a tp_group")
    largest = _whole_vocabulary(weight, tp_group)
    fits = vocab_size is None or 0 < vocab_size <= largest or tp_group is not None
    checks.require(fits, f"vocab_size {vocab_size} is not in 1..V of {checks.describe('weight', weight)}")
    rows = weight.shape[0]
    columns = rows if vocab_size is None else min(max(vocab_size - vocab_start, 0), rows)
    operations = backends.select_operations(backend, hidden)
    return SlicePlan(operations, 1.0 / temperature, columns, vocab_start, tp_group, entropy, int(workspace_bytes))


def _whole_vocabulary(weight: torch.Tensor, tp_group: dist.ProcessGroup | None) -> int:
    return weight.shape[0] * (1 if tp_group is None else dist.get_world_size(tp_group))


class RowStats(NamedTuple):
    """Of the whole vocabulary, for rows [n]: largest logit, log of the sum of powers, log-probability, entropy."""

    maximum: torch.Tensor
    log_sum: torch.Tensor
    logp: torch.Tensor
    entropy: torch.Tensor


def empty_stats(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Running statistics [4, rows] before the first slice; see torch_ops.row_stats."""
    stats = torch.zeros(4, rows, dtype=accumulator_dtype(like), device=like.device)
    stats[0].fill_(-torch.inf)
    stats[3].fill_(-torch.inf)
    return stats


def finish_stats(stats: torch.Tensor, scale: float) -> RowStats:
    maximum, total, dot, chosen = stats.unbind()
    log_sum = total.log()
    return RowStats(maximum, log_sum, (chosen - maximum) * scale - log_sum, log_sum - dot / total)


def _sliced_logits(hidden: torch.Tensor, weight: torch.Tensor, plan: SlicePlan) -> Iterator[tuple[slice, torch.Tensor]]:
    """(columns, logits of those columns) one slice after the other, all in the same workspace."""
    rows = hidden.shape[0]
    slices = plan.slices(rows, hidden.element_size())
    widest = max((stop - start for start, stop in slices), default=0)
    workspace = Workspace(rows, widest, hidden)
    for start, stop in slices:
        logits = workspace.logits(rows, stop - start)
        multiply_into(logits, hidden, weight[start:stop].t(), add=False)
        yield slice(start, stop), logits


def _statistics(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, plan: SlicePlan) -> RowStats:
    stats = empty_stats(hidden.shape[0], hidden)
    if hidden.shape[0]:
        for columns, logits in _sliced_logits(hidden, weight, plan):
            local = target - (plan.vocab_start + columns.start)
            plan.operations.row_stats(logits, local, stats, plan.scale, plan.entropy)
        if plan.tp_group is not None:
            stats = _merge_shards(stats, plan)
    return finish_stats(stats, plan.scale)


def _merge_shards(stats: torch.Tensor, plan: SlicePlan) -> torch.Tensor:
    """The statistics of all shards in one; the forward pass's only communication."""
    shards = stats.new_empty(dist.get_world_size(plan.tp_group), *stats.shape)
    dist.all_gather_into_tensor(shards.view(-1, stats.shape[1]), stats, group=plan.tp_group)
    maxima, totals, dots, chosen = shards.unbind(1)
    maximum = maxima.amax(0)
    shift = torch.where(totals > 0, (maxima - maximum) * plan.scale, 0.0)
    decay = shift.exp()
    return torch.stack([maximum, (totals * decay).sum(0), (decay * (dots + totals * shift)).sum(0), chosen.amax(0)])


def find_kept_rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Indices of the rows with mask != 0; None where that is all of them."""
    if mask is None:
        return None
    rows = mask.nonzero()[:, 0]
    return None if rows.numel() == mask.numel() else rows


def select_rows(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


def scatter_rows(values: torch.Tensor, rows: torch.Tensor | None, total: int, dtype: torch.dtype) -> torch.Tensor:
    """`values` at `rows` of a tensor with `total` rows, zeros elsewhere."""
    if rows is None:
        return values.to(dtype)
    out = torch.zeros(total, *values.shape[1:], dtype=dtype, device=values.device)
    return out.index_copy_(0, rows, values.to(dtype))


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, mask, plan):
        ctx.set_materialize_grads(False)
        rows = find_kept_rows(mask)
        with torch.autocast(hidden.device.type, enabled=False):
            stats = _statistics(select_rows(hidden, rows), weight, select_rows(target, rows), plan)
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, target, rows, stats.maximum, stats.log_sum, stats.entropy)
        outputs = [scatter_rows(part, rows, target.numel(), part.dtype) for part in (stats.logp, stats.entropy)]
        return outputs[0], outputs[1] if plan.entropy else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logp, grad_entropy):
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        hidden, weight, target, rows, maximum, log_sum, entropy = ctx.saved_tensors
        logp_slope = torch.zeros_like(maximum) if grad_logp is None else select_rows(grad_logp, rows).to(maximum.dtype)
        slopes = [logp_slope]
        moved = logp_slope != 0
        if grad_entropy is not None:
            slopes.append(select_rows(grad_entropy, rows).to(maximum.dtype))
            moved |= slopes[1] != 0
        alive = find_kept_rows(moved)  # among the unmasked rows: those with a gradient
        if alive is not None:
            rows = alive if rows is None else rows[alive]
        parts = [select_rows(part, alive) for part in (maximum, log_sum, entropy, *slopes)]
        with torch.autocast(hidden.device.type, enabled=False):
            d_hidden, d_weight = _gradients(
                select_rows(hidden, rows), weight, select_rows(target, rows), parts, ctx.plan, ctx.needs_input_grad[:2]
            )
        if d_hidden is not None:
            d_hidden = scatter_rows(d_hidden, rows, hidden.shape[0], hidden.dtype)
        return d_hidden, d_weight, None, None, None


def _gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    parts: list[torch.Tensor],
    plan: SlicePlan,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(d hidden, in fp32 where slices were added up, d weight) for rows that all have a gradient."""
    rows = hidden.shape[0]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[1] else None
    d_hidden = None
    if wanted[0]:
        alone = rows == 0 or (len(plan.slices(rows, hidden.element_size())) == 1 and plan.tp_group is None)
        d_hidden = torch.empty_like(
            hidden, dtype=hidden.dtype if alone else accumulator_dtype(hidden), memory_format=torch.contiguous_format
        )
    if rows == 0:
        return d_hidden, None if d_weight is None else d_weight.zero_()
    maximum, log_sum, entropy, grad_logp, *rest = parts
    grad_entropy = rest[0] if rest else None
    for columns, logits in _sliced_logits(hidden, weight, plan):
        local = target - (plan.vocab_start + columns.start)
        plan.operations.row_gradient(logits, local, maximum, log_sum, entropy, grad_logp, grad_entropy, plan.scale)
        if d_hidden is not None:
            multiply_into(d_hidden, logits, weight[columns], add=columns.start > 0)
        if d_weight is not None:
            multiply_into(d_weight[columns], logits.t(), hidden, add=False)
    if d_hidden is not None and plan.tp_group is not None:
        if plan.columns == 0:
            d_hidden.zero_()
        dist.all_reduce(d_hidden, group=plan.tp_group)
    if d_weight is not None:
        d_weight[plan.columns :].zero_()
    return d_hidden, d_weight
