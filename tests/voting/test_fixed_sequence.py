"""The exact bound, the sequence of tests, and its promise on simulated slices."""

from __future__ import annotations

import random
from math import comb

import pytest

from medssr_dist.data.exact_bound import bound_from_below, count_tail
from medssr_dist.voting.fixed_sequence import (
    JudgedLabel,
    count_enough,
    count_fewest,
    count_kept,
    count_needed,
    list_thresholds,
    run_sequence,
)


@pytest.mark.parametrize(("right", "of"), [(0, 5), (1, 5), (5, 5), (3, 10), (40, 50), (29, 29)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_is_where_the_tail_reaches_the_level(right, of, confidence):
    bound = bound_from_below(right, of, confidence)
    if right == 0:
        assert bound == 0
        return
    tail = sum(comb(of, i) * bound**i * (1 - bound) ** (of - i) for i in range(right, of + 1))
    assert tail == pytest.approx(1 - confidence, abs=1e-9)


def test_known_bounds_and_large_counts():
    assert bound_from_below(90, 100, 0.95) == pytest.approx(0.83628, abs=1e-5)
    assert bound_from_below(99_000, 100_000, 0.95) == pytest.approx(0.98947, abs=1e-4)
    assert bound_from_below(0, 0, 0.95) == 0
    assert count_tail(3, 3, 0.5) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="4 successes of 3"):
        bound_from_below(4, 3, 0.95)


def test_the_thresholds_are_fixed_beforehand():
    assert list_thresholds(4, 0.5) == [1.0, 0.75, 0.5]
    assert list_thresholds(4, 0.6) == [1.0, 0.75, 0.6]
    assert list_thresholds(4, 0.0) == [1.0, 0.75, 0.5, 0.25]
    assert list_thresholds(1, 0.0) == [1.0]


def test_numbers_of_labels_needed():
    assert count_fewest(0.9, 0.95) == 29
    assert bound_from_below(29, 29, 0.95) >= 0.9 > bound_from_below(28, 28, 0.95)
    assert count_needed(0.9, 0.9, 0.95) is None
    assert count_needed(1.0, 0.9, 0.95) == 29
    enough = count_enough(0.9, 0.95)
    assert bound_from_below(int(0.95 * enough), enough, 0.95) >= 0.9


def labels(*groups: tuple[float | None, int, int]) -> list[JudgedLabel]:
    """(share, number, right ones) of each group."""
    return [JudgedLabel(share, i < right, False) for share, number, right in groups for i in range(number)]


def test_the_sequence_ends_at_the_first_failure():
    found = run_sequence(
        labels((1.0, 200, 198), (0.75, 200, 150), (0.5, 300, 300), (None, 50, 0)), [1.0, 0.75, 0.5], 0.9, 0.95
    )
    assert [each.threshold for each in found.passed] == [1.0]
    assert found.failed and (found.failed.kept, found.failed.right) == (400, 348)


def test_the_sequence_begins_where_enough_labels_are():
    """Ten labels at 1.0 would fail whatever they are; 0.75 has enough."""
    found = run_sequence(labels((1.0, 10, 10), (0.75, 200, 196)), [1.0, 0.75], 0.9, 0.95)
    assert [each.threshold for each in found.passed] == [0.75] and found.failed is None
    few = run_sequence(labels((1.0, 5, 5), (0.5, 40, 40)), [1.0, 0.75, 0.5], 0.9, 0.95)
    assert [each.kept for each in few.passed] == [45]  # fewer than enough: the smallest threshold alone


def test_labels_without_a_winner_are_never_kept():
    assert count_kept(labels((None, 9, 0), (0.5, 3, 2)), 0.5)[1:] == (3, 2)


@pytest.mark.parametrize(("precision", "confidence"), [(0.9, 0.95), (0.8, 0.9)])
@pytest.mark.parametrize("size", [150, 600])
def test_the_promise_holds_in_the_share_promised(precision, confidence, size):
    """Slices of a known world: right with a probability that rises with the share. All thresholds below 0.8 are bad."""
    rng = random.Random(f"{precision} {size}")
    shares = [i / 16 for i in range(6, 17)]
    right = {share: 0.42 + 0.56 * share for share in shares}

    def true_precision(threshold: float) -> float:
        kept = [right[share] for share in shares if share >= threshold]
        return sum(kept) / len(kept)

    broken = 0
    for _ in range(400):
        drawn = [rng.choice(shares) for _ in range(size)]
        slice_ = [JudgedLabel(share, rng.random() < right[share], False) for share in drawn]
        found = run_sequence(slice_, list_thresholds(16, 0.25), precision, confidence)
        broken += bool(found.passed) and true_precision(found.passed[-1].threshold) < precision
    assert broken / 400 <= 1 - confidence + 0.02
