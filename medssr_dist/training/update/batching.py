"""Which sample goes to which rank, optimizer step and micro-batch: planned in one place, from the lengths alone.

Under ZeRO-3 all ranks gather every weight together. They therefore process the same number of micro-batches and wait
for each other in each of them. A row of the plan holds the micro-batches that the ranks process at the same time, and
takes as long as its slowest micro-batch, so the micro-batches of a row get similar work. A plan consists of indices of
samples and can be tested without a model.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

Bins = list[list[int]]  # micro-batches, as indices of samples
Rows = list[Bins]  # each row: what the ranks process at the same time, one micro-batch for each rank
MicroBatchPlan = list[list[Bins]]  # [rank][optimizer step][micro-batch]; an empty micro-batch keeps a rank in step
Cut = Callable[[list[int]], Rows]  # splits the samples of one optimizer step into rows


def plan_micro_batches(lengths: Sequence[int], ranks: int, updates: int, seed: int, cut: Cut) -> MicroBatchPlan:
    """Split samples of these `lengths` (tokens) into optimizer steps, and each step into micro-batches of the ranks.

    Args:
        updates: number of optimizer steps; with more than one, the samples are split in an order drawn from `seed`.
        cut: made by `make_balanced_cut`, `make_budget_cut` or `make_fixed_cut`.

    Example: plan_micro_batches([3, 9, 4, 8], 2, 1, 0, make_balanced_cut([3, 9, 4, 8], 2, 1)) is
        [[[[1], [0]]], [[[3], [2]]]]: the ranks process samples 1 and 3 together, then 0 and 2.
    """
    order = np.arange(len(lengths))
    if updates > 1:
        order = np.random.default_rng(seed).permutation(order)
    rows = [cut(part.tolist()) for part in np.array_split(order, updates)]
    return [[[row[rank] for row in update] for update in rows] for rank in range(ranks)]


def make_balanced_cut(lengths: Sequence[int], ranks: int, size: int) -> Cut:
    """Return a cut into micro-batches of at most `size` sequences of similar lengths, longest first.

    Similar lengths need little padding.
    """

    def cut(samples: list[int]) -> Rows:
        ordered = sorted(samples, key=lambda index: -lengths[index])
        return _make_rows(_split_evenly(ordered, _round_up(len(samples) / size, ranks)), ranks)

    return cut


def make_budget_cut(lengths: Sequence[int], ranks: int, tokens: int) -> Cut:
    """Return a cut into micro-batches of at most `tokens` tokens in total, for packing, with few rows.

    No length may exceed `tokens`. Each sample, longest first, goes into the bin with the fewest tokens; if a bin
    overflows, this is repeated with one more row.
    """

    def cut(samples: list[int]) -> Rows:
        ordered = sorted(samples, key=lambda index: -lengths[index])
        count = _round_up(sum(lengths[index] for index in samples) / tokens, ranks)
        while True:
            bins, fullest = _fill_bins(ordered, lengths, count)
            if fullest <= tokens:
                return _make_rows(bins, ranks)
            count += ranks

    return cut


def make_fixed_cut(ranks: int, size: int) -> Cut:
    """Return a cut into micro-batches of `size` sequences in the order of the samples.

    Each rank gets adjacent samples: OpenRLHF's way, without its shuffle.
    """

    def cut(samples: list[int]) -> Rows:
        shares = _split_evenly(samples, ranks)
        rows = _round_up(len(shares[0]) / size, 1)
        return [list(row) for row in zip(*(_split_evenly(share, rows) for share in shares), strict=True)]

    return cut


def _make_rows(bins: Bins, ranks: int) -> Rows:
    """Group adjacent bins into rows; every second row is reversed, so that no rank gets the largest bin of each row."""
    rows = [bins[start : start + ranks] for start in range(0, len(bins), ranks)]
    return [row[::-1] if index % 2 else row for index, row in enumerate(rows)]


def _round_up(needed: float, multiple: int) -> int:
    """Return the smallest positive multiple of `multiple` that is at least `needed`."""
    return max(1, -(-int(np.ceil(needed)) // multiple)) * multiple


def _split_evenly(samples: list[int], count: int) -> Bins:
    """Split into `count` runs of adjacent samples, whose sizes differ by at most one, larger ones first."""
    return [part.tolist() for part in np.array_split(np.asarray(samples, dtype=int), count)]


def _fill_bins(ordered: list[int], lengths: Sequence[int], count: int) -> tuple[Bins, int]:
    """Put each sample into the bin with the fewest tokens; return the bins, fullest first, and the fullest's tokens."""
    bins: Bins = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for index in ordered:
        load, number = heapq.heappop(heap)
        bins[number].append(index)
        heapq.heappush(heap, (load + lengths[index], number))
    loads = {number: load for load, number in heap}
    fullest_first = sorted(range(count), key=lambda number: -loads[number])
    return [bins[number] for number in fullest_first], loads[fullest_first[0]]
