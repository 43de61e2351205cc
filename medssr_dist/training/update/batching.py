"""Which sample goes to which rank, update and micro-batch: all planned in one place, from the lengths alone.

Under ZeRO-3 the ranks gather every weight together, so they take the same number of micro-batches and wait for each
other in each: the k-th micro-batches of all ranks are a row of the plan, and a row takes as long as its slowest. Rows
are therefore made of like work. A plan is indices, so that it can be tested without a model.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

Bins = list[list[int]]  # micro-batches, of indices of samples
Rows = list[Bins]  # what the ranks do at the same time, a micro-batch each
Plan = list[list[Bins]]  # [rank][update][micro-batch]; an empty micro-batch is an idle one


def plan(lengths: Sequence[int], ranks: int, updates: int, seed: int, cut: Callable[[list[int]], Rows]) -> Plan:
    """Share samples of these `lengths` (tokens) among the updates of a step, then each update's among the ranks.

    Args:
        updates: optimizer steps; with more than one, samples are shared in an order drawn from `seed`.
        cut: an update's samples -> its rows: `balanced`, `budgeted` or `fixed`.
    """
    order = np.arange(len(lengths))
    if updates > 1:
        order = np.random.default_rng(seed).permutation(order)
    rows = [cut(part.tolist()) for part in np.array_split(order, updates)]
    return [[[row[rank] for row in update] for update in rows] for rank in range(ranks)]


def _there_and_back(bins: Bins, ranks: int) -> Rows:
    """Rows of neighbours; every other one is turned round, so that no rank has all the larger micro-batches."""
    rows = [bins[start : start + ranks] for start in range(0, len(bins), ranks)]
    return [row[::-1] if index % 2 else row for index, row in enumerate(rows)]


def balanced(lengths: Sequence[int], ranks: int, size: int) -> Callable[[list[int]], Rows]:
    """At most `size` sequences of like lengths a micro-batch, so that little of it is padding; longest first."""

    def cut(samples: list[int]) -> Bins:
        ordered = sorted(samples, key=lambda index: -lengths[index])
        return _there_and_back(_runs(ordered, _multiple(len(samples) / size, ranks)), ranks)

    return cut


def budgeted(lengths: Sequence[int], ranks: int, tokens: int) -> Callable[[list[int]], Rows]:
    """Sequences of at most `tokens` tokens in all a micro-batch, for packing; the fewest rows that were found.

    No length may be above `tokens`. Longest first into the emptiest bin, with one row more until they fit.
    """

    def cut(samples: list[int]) -> Bins:
        ordered = sorted(samples, key=lambda index: -lengths[index])
        count = _multiple(sum(lengths[index] for index in samples) / tokens, ranks)
        while True:
            bins, fullest = _emptiest_first(ordered, lengths, count)
            if fullest <= tokens:
                return _there_and_back(bins, ranks)
            count += ranks

    return cut


def fixed(ranks: int, size: int) -> Callable[[list[int]], Rows]:
    """`size` sequences a micro-batch as they come, a share of neighbours a rank: OpenRLHF's way without its shuffle."""

    def cut(samples: list[int]) -> Bins:
        shares = _runs(samples, ranks)
        rows = _multiple(len(shares[0]) / size, 1)
        return [list(row) for row in zip(*(_runs(share, rows) for share in shares), strict=True)]

    return cut


def _multiple(needed: float, of: int) -> int:
    """The least multiple of `of` that is not below `needed`, and at least one."""
    return max(1, -(-int(np.ceil(needed)) // of)) * of


def _runs(samples: list[int], count: int) -> Bins:
    """`samples` cut into `count` runs whose sizes differ by one at most, the larger first."""
    return [part.tolist() for part in np.array_split(np.asarray(samples, dtype=int), count)]


def _emptiest_first(ordered: list[int], lengths: Sequence[int], count: int) -> tuple[Bins, int]:
    """Each sample into the bin with the fewest tokens so far; the bins, fullest first, and the tokens of that one."""
    bins: Bins = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for index in ordered:
        load, number = heapq.heappop(heap)
        bins[number].append(index)
        heapq.heappush(heap, (load + lengths[index], number))
    loads = {number: load for load, number in heap}
    fullest_first = sorted(range(count), key=lambda number: -loads[number])
    return [bins[number] for number in fullest_first], loads[fullest_first[0]]
