"""Plans of micro-batches: each sample once, equally many micro-batches on every rank, similar work in a row."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.training.update.batching import (
    make_balanced_cut,
    make_budget_cut,
    make_fixed_cut,
    plan_micro_batches,
)

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)
RANKS, UPDATES = st.integers(1, 5), st.integers(1, 3)


def make_cut(kind: str, lengths: list[int], ranks: int, size: int):
    return {
        "balanced": lambda: make_balanced_cut(lengths, ranks, size),
        "budget": lambda: make_budget_cut(lengths, ranks, 100 * size),
        "fixed": lambda: make_fixed_cut(ranks, size),
    }[kind]()


@pytest.mark.parametrize("kind", ["balanced", "budget", "fixed"])
@given(lengths=LENGTHS, ranks=RANKS, updates=UPDATES, size=st.integers(1, 9))
def test_each_sample_is_planned_once_within_the_limit(kind, lengths, ranks, updates, size):
    shares = plan_micro_batches(lengths, ranks, updates, 0, make_cut(kind, lengths, ranks, size))
    taken = Counter(index for rank in shares for update in rank for batch in update for index in batch)
    assert taken == Counter(range(len(lengths)))
    assert len(shares) == ranks
    assert len({tuple(len(update) for update in rank) for rank in shares}) == 1
    for batch in (batch for rank in shares for update in rank for batch in update):
        if kind == "budget":
            assert sum(lengths[index] for index in batch) <= 100 * size
        else:
            assert len(batch) <= size


@given(lengths=st.lists(st.integers(1, 100), min_size=16, max_size=16))
def test_balanced_pads_no_more_than_fixed(lengths):
    def count_padded(cut) -> int:
        (rank,) = plan_micro_batches(lengths, 1, 1, 0, cut)
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in rank[0])

    assert count_padded(make_balanced_cut(lengths, 1, 4)) <= count_padded(make_fixed_cut(1, 4))


def test_rows_are_similar_and_ranks_share_long_samples():
    shares = plan_micro_batches([8, 1, 7, 2, 6, 3, 5, 4], 2, 1, 0, make_balanced_cut([8, 1, 7, 2, 6, 3, 5, 4], 2, 2))
    assert shares == [[[[0, 2], [3, 1]]], [[[4, 6], [7, 5]]]]


def test_a_token_budget_uses_few_rows():
    lengths = [60, 40, 50, 50, 30, 70, 90, 10]  # four full bins of 100
    shares = plan_micro_batches(lengths, 2, 1, 0, make_budget_cut(lengths, 2, 100))
    assert [len(rank[0]) for rank in shares] == [2, 2]
    roomy = plan_micro_batches(lengths, 2, 1, 0, make_budget_cut(lengths, 2, 400))
    assert [len(rank[0]) for rank in roomy] == [1, 1]
    assert all(190 <= sum(lengths[index] for index in rank[0][0]) <= 210 for rank in roomy)


def test_fixed_is_the_order_of_openrlhf():
    assert plan_micro_batches([1] * 8, 2, 1, 0, make_fixed_cut(2, 2)) == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]]


def test_fewer_samples_than_ranks_gives_idle_micro_batches():
    assert plan_micro_batches([5], 3, 1, 0, make_balanced_cut([5], 3, 2)) == [[[[0]]], [[[]]], [[[]]]]


def test_optimizer_steps_are_drawn_from_the_seed():
    lengths = [1] * 12
    first, again, other = (plan_micro_batches(lengths, 1, 3, seed, make_fixed_cut(1, 12)) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(batch) for update in first[0] for batch in update] == [4, 4, 4]
