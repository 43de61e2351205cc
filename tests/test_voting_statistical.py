"""The statistical stop against enumeration of all completions under the same prior."""

from fractions import Fraction
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.config import Voting
from medssr_dist.voting.bound import certain, needed
from medssr_dist.voting.statistical import likely_decision
from tests.test_voting_bound import full_decision, tally_of


def by_enumeration(votes: str, letters: str, samples: int, threshold: float, confidence: str) -> dict:
    """Decision -> probability: one vote after the other, each with (1 + its count) / (categories + votes so far)."""
    found: dict = {}
    categories = letters + "-"
    for rest in product(categories, repeat=samples - len(votes)):
        chance = prod(
            (
                Fraction(1 + (votes + "".join(rest[:i])).count(vote), len(categories) + len(votes) + i)
                for i, vote in enumerate(rest)
            ),
            start=Fraction(1),
        )
        decision = full_decision("".join(sorted(votes + "".join(rest))), threshold, confidence)
        found[decision] = found.get(decision, 0) + chance
    return found


@given(
    st.integers(2, 4).map(lambda number: "ABCD"[:number]).flatmap(
        lambda letters: st.tuples(st.just(letters), st.text(letters + "-", min_size=2, max_size=6))
    ),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    st.sampled_from(["requested", "valid"]),
)  # fmt: skip
def test_probability_is_that_of_the_leaders_decision(case, threshold, confidence):
    letters, votes = case
    samples = len(votes) + 3
    counts = sorted((votes.count(letter) for letter in letters), reverse=True)
    kept, probability = likely_decision(tuple(counts), votes.count("-"), samples, threshold, confidence)
    expected = by_enumeration(votes, letters, samples, threshold, confidence)
    leader = max(letters, key=votes.count)
    of_leader = {flag: expected.get(("labeled", leader, flag), 0) for flag in (True, False)}
    assert of_leader[kept] == max(of_leader.values())
    assert probability == pytest.approx(float(of_leader[kept]), abs=1e-12)


def test_it_stops_earlier_the_more_error_is_allowed():
    taken = []
    for error_rate in (1e-9, 0.01, 0.1, 0.3):
        voting = Voting(adaptive="statistical", error_rate=error_rate)
        taken.append(next(n for n in range(1, 17) if certain(tally_of("B" * n), "ABCDE", voting)))
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == 9 and taken[-1] < 5


def test_a_wave_goes_as_far_as_a_stop_is_possible():
    voting = Voting(adaptive="statistical", error_rate=0.1)
    wave = needed(tally_of(""), "ABCD", voting)
    assert certain(tally_of("A" * wave), "ABCD", voting)
    assert not certain(tally_of("A" * (wave - 1)), "ABCD", voting)
