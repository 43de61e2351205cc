"""Log-probability of the next token from the hidden states, without holding the logits [N, V].

The vocabulary is processed in slices of columns. Forward: cuBLAS writes the logits of a slice to a bounded workspace,
and a row kernel updates each row's running maximum, sum and entropy (online softmax). Backward: the slice's logits are
computed again and turned into their gradient in place; from that, the slice's rows of dW are written once, and dX is
accumulated in fp32. These are four GEMMs, against three for logits that are kept. The workspace is read once in the
forward pass, and read and written once in the backward pass.

Logits are rounded to the dtype of the inputs, as in torch. Everything after that is fp32.

Rows that are masked, or whose upstream gradient is zero, are left out of the GEMMs. Their number gives the GEMM's size,
so `find_kept_rows` must read it from the device: once in the forward pass if there is a mask, and once in the backward
pass. Nothing else in this package reads from the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from medssr_dist.kernels import backends, checks
from medssr_dist.kernels.backends import Operations
from medssr_dist.kernels.matmul import Workspace, accumulator_dtype, multiply_into, split_evenly

WORKSPACE_BYTES = 512 * 2**20
SLICE_MULTIPLE = 256  # columns; also the least that a slice holds, whatever the budget


class SlicePlan(NamedTuple):
    """How the vocabulary is sliced, and what is the same for all rows.

    Attributes:
        scale: 1 / temperature.
        columns: rows of the weight that are real tokens of the vocabulary; those after them are padding.
        vocab_start: index in the whole vocabulary of the weight's first row.
        entropy: whether the entropy is computed.
        workspace_bytes: bound on the logits held at a time.
    """

    operations: Operations
    scale: float
    columns: int
    vocab_start: int
    tp_group: dist.ProcessGroup | None
    entropy: bool
    workspace_bytes: int

    def slices(self, rows: int, itemsize: int) -> list[tuple[int, int]]:
        """Return the (start, stop) columns of each slice for logits of `rows` rows and `itemsize` bytes an element."""
        return list(split_evenly(self.columns, self.workspace_bytes // (rows * itemsize), SLICE_MULTIPLE))


class LogprobEntropy(NamedTuple):
    """Log-probability of the target and entropy of the distribution, [N] each, in fp32, natural logarithm.

    A uniform distribution over 4 tokens gives logp -1.3863 and entropy 1.3863.
    """

    logp: torch.Tensor
    entropy: torch.Tensor


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
) -> torch.Tensor | LogprobEntropy:
    """Return log softmax(hidden @ weight.T / temperature) at `target`, [N] in fp32; on request also the entropy [N].

    hidden [N, H], weight [V, H], target [N]. Differentiable in hidden and weight through both outputs.

    Args:
        mask: [N]; rows with 0 give 0, get no gradient and cost nothing, and their targets may have any value.
        tp_group: tensor parallelism: `weight` holds this rank's rows of the vocabulary. hidden, target, mask and the
            upstream gradients are the same on each rank, and so are the results. Targets index the whole vocabulary.
        vocab_start: index of this rank's first row in the whole vocabulary.
        vocab_size: real size of the whole vocabulary where `weight` is padded. Rows from there on are never read and
            get zero gradients. Without it, the shards of a `tp_group` must have the same size.
        backend: "triton", "torch" or None (Triton on CUDA).
        workspace_bytes: bound on the slice of logits that is held.

    Raises:
        ValueError: names the tensor or the number that does not fit.
    """
    checks.require_linear(hidden, weight, target, mask)
    plan = make_slice_plan(
        hidden,
        weight,
        temperature=temperature,
        entropy=return_entropy,
        tp_group=tp_group,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        backend=backend,
        workspace_bytes=workspace_bytes,
    )
    checks.require_targets(target, mask, vocab_size or whole_vocabulary(weight, tp_group))
    logp, entropy = compute_logprob(hidden, weight, target, mask, plan)
    return logp if entropy is None else LogprobEntropy(logp, entropy)


def make_slice_plan(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    temperature: float,
    entropy: bool,
    tp_group: dist.ProcessGroup | None,
    vocab_start: int,
    vocab_size: int | None,
    backend: str | None,
    workspace_bytes: int,
) -> SlicePlan:
    """Check the numbers, which linear_logprob documents, and return the plan. Raises ValueError where one is wrong."""
    checks.require_positive("temperature", temperature)
    checks.require_positive("workspace_bytes", workspace_bytes)
    checks.require(vocab_start >= 0, f"vocab_start must not be negative, not {vocab_start}")
    checks.require(tp_group is not None or vocab_start == 0, f"vocab_start {vocab_start} needs a tp_group")
    largest = whole_vocabulary(weight, tp_group)
    fits = vocab_size is None or 0 < vocab_size <= largest or tp_group is not None
    checks.require(fits, f"vocab_size {vocab_size} is not in 1..V of {checks.describe('weight', weight)}")
    rows = weight.shape[0]
    columns = rows if vocab_size is None else min(max(vocab_size - vocab_start, 0), rows)
    operations = backends.select_operations(backend, hidden)
    return SlicePlan(operations, 1.0 / temperature, columns, vocab_start, tp_group, entropy, int(workspace_bytes))


def whole_vocabulary(weight: torch.Tensor, tp_group: dist.ProcessGroup | None) -> int:
    """Return the number of rows of the weight over all ranks of `tp_group`."""
    return weight.shape[0] * (1 if tp_group is None else dist.get_world_size(tp_group))


def compute_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, plan: SlicePlan
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (log-probability [N], entropy [N] if the plan has it) of inputs that were checked; differentiable."""
    logp, entropy = _LinearLogprob.apply(hidden, weight, target, mask, plan)
    return logp, entropy


class RowStats(NamedTuple):
    """Statistics of rows [n] over the whole vocabulary.

    maximum: of the logits; log_sum: log of the sum of e^(scale * (logit - maximum)); logp: of the target; entropy.
    """

    maximum: torch.Tensor
    log_sum: torch.Tensor
    logp: torch.Tensor
    entropy: torch.Tensor


def empty_stats(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Return the running statistics [4, rows] before the first slice; torch_ops.row_stats describes them."""
    stats = torch.zeros(4, rows, dtype=accumulator_dtype(like), device=like.device)
    stats[0].fill_(-torch.inf)
    stats[3].fill_(-torch.inf)
    return stats


def finish_stats(stats: torch.Tensor, scale: float) -> RowStats:
    """Return the statistics of the rows from the running ones [4, n] after the last slice."""
    maximum, total, dot, chosen = stats.unbind()
    log_sum = total.log()
    return RowStats(maximum, log_sum, (chosen - maximum) * scale - log_sum, log_sum - dot / total)


def _sliced_logits(hidden: torch.Tensor, weight: torch.Tensor, plan: SlicePlan) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (columns, logits of those columns) slice after slice, all in the same workspace."""
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
    """Return the statistics over all shards of the vocabulary. The forward pass communicates here alone."""
    shards = stats.new_empty(dist.get_world_size(plan.tp_group), *stats.shape)
    dist.all_gather_into_tensor(shards.view(-1, stats.shape[1]), stats, group=plan.tp_group)
    maxima, totals, dots, chosen = shards.unbind(1)
    maximum = maxima.amax(0)
    shift = torch.where(totals > 0, (maxima - maximum) * plan.scale, 0.0)
    decay = shift.exp()
    return torch.stack([maximum, (totals * decay).sum(0), (decay * (dots + totals * shift)).sum(0), chosen.amax(0)])


def find_kept_rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return the indices of the rows with mask != 0, or None if those are all rows. Waits for the device."""
    if mask is None:
        return None
    rows = mask.nonzero()[:, 0]
    return None if rows.numel() == mask.numel() else rows


def select_rows(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return `tensor` at `rows`; None: all of it."""
    return tensor if rows is None else tensor.index_select(0, rows)


def scatter_rows(values: torch.Tensor, rows: torch.Tensor | None, total: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of `total` rows with `values` at `rows` and zeros elsewhere; rows None: `values` itself."""
    if rows is None:
        return values.to(dtype)
    out = torch.zeros(total, *values.shape[1:], dtype=dtype, device=values.device)
    return out.index_copy_(0, rows, values.to(dtype))


class HeadGradients(NamedTuple):
    """Gradients of the hidden states [N, H] and of the weight [V, H]; None for one that is not needed."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None


class _Upstream(NamedTuple):
    """What the backward pass needs of each row [n]: statistics of the forward pass, gradients of its outputs."""

    maximum: torch.Tensor
    log_sum: torch.Tensor
    entropy: torch.Tensor
    grad_logp: torch.Tensor
    grad_entropy: torch.Tensor | None

    def select(self, rows: torch.Tensor | None) -> _Upstream:
        """Return these rows alone; None: all of them."""
        return _Upstream(
            select_rows(self.maximum, rows),
            select_rows(self.log_sum, rows),
            select_rows(self.entropy, rows),
            select_rows(self.grad_logp, rows),
            None if self.grad_entropy is None else select_rows(self.grad_entropy, rows),
        )


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        plan: SlicePlan,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
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
    def backward(
        ctx: Any, grad_logp: torch.Tensor | None, grad_entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        hidden, weight, target, rows, maximum, log_sum, entropy = ctx.saved_tensors

        def of_rows(grad: torch.Tensor) -> torch.Tensor:
            return select_rows(grad, rows).to(maximum.dtype)

        logp_slope = torch.zeros_like(maximum) if grad_logp is None else of_rows(grad_logp)
        moved = logp_slope != 0
        entropy_slope = None if grad_entropy is None else of_rows(grad_entropy)
        if entropy_slope is not None:
            moved |= entropy_slope != 0
        alive = find_kept_rows(moved)  # among the unmasked rows: those with a gradient
        if alive is not None:
            rows = alive if rows is None else rows[alive]
        upstream = _Upstream(maximum, log_sum, entropy, logp_slope, entropy_slope).select(alive)
        with torch.autocast(hidden.device.type, enabled=False):
            d_hidden, d_weight = _gradients(
                select_rows(hidden, rows), weight, select_rows(target, rows), upstream, ctx.plan, ctx.needs_input_grad
            )
        if d_hidden is not None:
            d_hidden = scatter_rows(d_hidden, rows, hidden.shape[0], hidden.dtype)
        return d_hidden, d_weight, None, None, None


def _gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    upstream: _Upstream,
    plan: SlicePlan,
    wanted: tuple[bool, ...],
) -> HeadGradients:
    """Return the gradients that `wanted` (hidden, weight, ...) asks for, from rows that all have a gradient.

    That of `hidden` is in fp32 where slices were added up.
    """
    rows = hidden.shape[0]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[1] else None
    d_hidden = None
    if wanted[0]:
        alone = rows == 0 or (len(plan.slices(rows, hidden.element_size())) == 1 and plan.tp_group is None)
        d_hidden = torch.empty_like(
            hidden, dtype=hidden.dtype if alone else accumulator_dtype(hidden), memory_format=torch.contiguous_format
        )
    if rows == 0:
        return HeadGradients(d_hidden, None if d_weight is None else d_weight.zero_())
    for columns, logits in _sliced_logits(hidden, weight, plan):
        local = target - (plan.vocab_start + columns.start)
        plan.operations.row_gradient(logits, local, *upstream, plan.scale)
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
    return HeadGradients(d_hidden, d_weight)
