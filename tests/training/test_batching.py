"""Plans of micro-batches: every sample once, the same number of micro-batches on every rank, like work beside like."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.training.update.batching import balanced, budgeted, fixed, plan

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)
RANKS, UPDATES = st.integers(1, 5), st.integers(1, 3)


def cut_of(kind: str, lengths: list[int], ranks: int, size: int):
    return {
        "balanced": lambda: balanced(lengths, ranks, size),
        "budgeted": lambda: budgeted(lengths, ranks, 100 * size),
        "fixed": lambda: fixed(ranks, size),
    }[kind]()


@pytest.mark.parametrize("kind", ["balanced", "budgeted", "fixed"])
@given(lengths=LENGTHS, ranks=RANKS, updates=UPDATES, size=st.integers(1, 9))
def test_every_sample_once_and_within_the_limit(kind, lengths, ranks, updates, size):
    shares = plan(lengths, ranks, updates, 0, cut_of(kind, lengths, ranks, size))
    taken = Counter(index for rank in shares for update in rank for batch in update for index in batch)
    assert taken == Counter(range(len(lengths)))
    assert len(shares) == ranks
    assert len({tuple(len(update) for update in rank) for rank in shares}) == 1
    for batch in (batch for rank in shares for update in rank for batch in update):
        if kind == "budgeted":
            assert sum(lengths[index] for index in batch) <= 100 * size
        else:
            assert len(batch) <= size


@given(lengths=st.lists(st.integers(1, 100), min_size=16, max_size=16))
def test_balanced_pads_no_more_than_batches_as_they_come(lengths):
    def padded(cut) -> int:
        (rank,) = plan(lengths, 1, 1, 0, cut)
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in rank[0])

    assert padded(balanced(lengths, 1, 4)) <= padded(fixed(1, 4))


def test_rows_are_alike_and_ranks_share_the_longer_ones():
    shares = plan([8, 1, 7, 2, 6, 3, 5, 4], 2, 1, 0, balanced([8, 1, 7, 2, 6, 3, 5, 4], 2, 2))
    assert shares == [[[[0, 2], [3, 1]]], [[[4, 6], [7, 5]]]]


def test_a_budget_takes_the_fewest_rows():
    lengths = [60, 40, 50, 50, 30, 70, 90, 10]  # four full bins of 100
    shares = plan(lengths, 2, 1, 0, budgeted(lengths, 2, 100))
    assert [len(rank[0]) for rank in shares] == [2, 2]
    roomy = plan(lengths, 2, 1, 0, budgeted(lengths, 2, 400))
    assert [len(rank[0]) for rank in roomy] == [1, 1]
    assert all(190 <= sum(lengths[index] for index in rank[0][0]) <= 210 for rank in roomy)


def test_as_they_come_is_openrlhfs_order():
    assert plan([1] * 8, 2, 1, 0, fixed(2, 2)) == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]


def test_fewer_samples_than_ranks_leaves_idle_micro_batches():
    assert plan([5], 3, 1, 0, balanced([5], 3, 2)) == [[[[0]]], [[[]]], [[[]]]]


def test_updates_are_drawn_from_the_seed():
    lengths = [1] * 12
    first, again, other = (plan(lengths, 1, 3, seed, fixed(1, 12)) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(batch) for update in first[0] for batch in update] == [4, 4, 4]
