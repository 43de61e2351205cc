"""Statistical stopping, compared with an enumeration of all completions under the same prior."""

from fractions import Fraction
from functools import cache
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vote_cases import full_decision, tally_of

from medssr_dist.config.voting import Voting
from medssr_dist.voting.early_stopping import (
    _count_needed_votes,
    _is_certain,
    count_needed_votes,
    find_likely_decision,
    is_certain,
)
from medssr_dist.voting.tally import DecisionRule, RankedCounts


def by_enumeration(votes: str, letters: str, samples: int, threshold: float, confidence: str) -> dict:
    """Decision -> probability. Each further vote has probability (1 + its count) / (categories + votes so far)."""
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
    st.integers(2, 4)
    .map(lambda number: "ABCD"[:number])
    .flatmap(lambda letters: st.tuples(st.just(letters), st.text(letters + "-", min_size=2, max_size=6))),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    st.sampled_from(["requested", "valid"]),
)
def test_the_probability_is_that_of_the_leaders_decision(case, threshold, confidence):
    letters, votes = case
    samples = len(votes) + 3
    counts = sorted((votes.count(letter) for letter in letters), reverse=True)
    kept, probability = find_likely_decision(tuple(counts), votes.count("-"), samples, threshold, confidence)
    expected = by_enumeration(votes, letters, samples, threshold, confidence)
    leader = max(letters, key=votes.count)
    of_leader = {flag: expected.get(("labeled", leader, flag), 0) for flag in (True, False)}
    assert of_leader[kept] == max(of_leader.values())
    assert probability == pytest.approx(float(of_leader[kept]), abs=1e-12)


def test_a_higher_error_rate_stops_earlier():
    taken = []
    for error_rate in (1e-9, 0.01, 0.1, 0.3):
        voting = Voting(adaptive="statistical", error_rate=error_rate)
        taken.append(next(n for n in range(1, 17) if is_certain(tally_of("B" * n), "ABCDE", voting)))
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == 9 and taken[-1] < 5


def test_a_wave_ends_where_a_stop_is_possible():
    voting = Voting(adaptive="statistical", error_rate=0.1)
    wave = count_needed_votes(tally_of(""), "ABCD", voting)
    assert is_certain(tally_of("A" * wave), "ABCD", voting)
    assert not is_certain(tally_of("A" * (wave - 1)), "ABCD", voting)


def one_more(ranked: RankedCounts):
    for i in range(len(ranked.counts)):
        counts = [count + (j == i) for j, count in enumerate(ranked.counts)]
        yield RankedCounts(tuple(sorted(counts, reverse=True)), ranked.invalid)
    yield ranked._replace(invalid=ranked.invalid + 1)


@pytest.mark.parametrize("confidence", ["requested", "valid"])
@pytest.mark.parametrize(("options", "samples"), [(2, 9), (3, 8), (4, 6)])
def test_needed_votes_are_the_fewest_to_stop(options, samples, confidence):
    """For all possible counts, compared with a search through all that may follow."""
    for error_rate in (0.01, 0.1, 0.3):
        for threshold in (0.0, 0.5, 0.75, 1.0):
            rule = DecisionRule(samples, threshold, confidence, "statistical", error_rate)

            @cache
            def fewest(ranked, rule=rule):
                return 0 if _is_certain(ranked, rule) else 1 + min(map(fewest, one_more(ranked)))

            waiting = [RankedCounts((0,) * options, 0)]
            for ranked in waiting:
                assert _count_needed_votes(ranked, rule) == fewest(ranked)
                if ranked.taken < samples:
                    waiting += set(one_more(ranked)) - set(waiting)


def test_it_never_stops_at_a_tie_or_without_a_valid_vote():
    voting = Voting(samples=16, adaptive="statistical", error_rate=0.45)
    assert not is_certain(tally_of("-" * 15), "AB", voting)
    assert not is_certain(tally_of("AB" + "-" * 13), "AB", voting)
