"""Early stopping, compared with all completions of the votes."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vote_cases import LETTERS, all_decisions, tally_of, unfinished

from medssr_dist.config.voting import Voting
from medssr_dist.voting.early_stopping import _count_needed_votes, bound_confidence, count_needed_votes, is_certain
from medssr_dist.voting.tally import reaches_threshold


def cannot_change(votes: str, letters: str, voting: Voting) -> bool:
    decisions = all_decisions(votes, letters, voting)
    if voting.adaptive == "kept":
        decisions = {(answer, kept) if kept else (None, False) for _, answer, kept in decisions}
    return len(decisions) == 1


@given(unfinished())
def test_certain_means_no_completion_changes_the_decision(case):
    votes, letters, voting = case
    assert is_certain(tally_of(votes), letters, voting) == cannot_change(votes, letters, voting)


@given(unfinished())
def test_needed_votes_are_the_fewest_to_become_certain(case):
    votes, letters, voting = case
    fewest = next(
        more
        for more in range(voting.samples - len(votes) + 1)
        if any(
            cannot_change(votes + "".join(rest), letters, voting)
            for rest in combinations_with_replacement(letters + "-", more)
        )
    )
    assert count_needed_votes(tally_of(votes), letters, voting) == fewest


@given(unfinished(), st.data())
def test_no_part_of_a_wave_makes_the_decision_certain(case, data):
    """So none of its votes is superfluous. The whole wave need not make it certain."""
    votes, letters, voting = case
    wave = count_needed_votes(tally_of(votes), letters, voting)
    answers = data.draw(st.text(letters + "-", min_size=wave, max_size=wave))
    part = "".join(vote for vote in answers[1:] if data.draw(st.booleans()))
    if wave:
        assert not is_certain(tally_of(votes + part), letters, voting)


@given(unfinished(), st.data())
def test_waves_take_the_same_votes_as_single_votes(case, data):
    _, letters, voting = case
    full = data.draw(st.text(letters + "-", min_size=voting.samples, max_size=voting.samples))
    one_by_one = next(n for n in range(len(full) + 1) if is_certain(tally_of(full[:n]), letters, voting))
    taken = 0
    while wave := count_needed_votes(tally_of(full[:taken]), letters, voting):
        taken += wave
    assert taken == one_by_one


@given(unfinished())
def test_confidence_bounds_are_those_of_all_completions(case):
    votes, letters, voting = case
    tops, shares = [], []
    for rest in combinations_with_replacement(letters + "-", voting.samples - len(votes)):
        full = votes + "".join(rest)
        tops.append(max(map(full.count, letters)))
        valid = len(full) - full.count("-")
        shares.append(tops[-1] / valid if valid else 0.0)
    least, most = min(tops) / voting.samples, max(tops) / voting.samples
    assert bound_confidence(tally_of(votes), letters, voting) == ((least, most), (min(shares), max(shares)))


@given(unfinished())
def test_once_certain_always_certain(case):
    votes, letters, voting = case
    if len(votes) < voting.samples and is_certain(tally_of(votes), letters, voting):
        assert all(is_certain(tally_of(votes + more), letters, voting) for more in letters + "-")


@pytest.mark.parametrize(
    ("adaptive", "votes", "threshold", "confidence", "expected"),
    [
        ("lossless", "AAAAAAAAA", 0.5, "requested", True),  # 9 of 16
        ("lossless", "AAAAAAAA", 0.5, "requested", False),  # 8: the rest may end in a tie
        ("lossless", "AAAAAAAAA", 0.7, "requested", False),  # A wins; whether with 70% is not known
        ("lossless", "BBBBBBBBB----", 0.75, "requested", False),
        ("lossless", "BBBBBBBBB-----", 0.75, "requested", True),  # 11 of 16 at most
        ("kept", "AABBCCDDE", 0.6, "requested", True),  # no option reaches 10 of 16
        ("lossless", "AABBCCDDE", 0.6, "requested", False),  # but the winner is not known
        ("kept", "AABB-----", 0.6, "valid", False),  # 9 of 11 valid ones, if A has the rest
        ("never", "AAAAAAAAAAAAAAA", 0.5, "requested", False),
        ("never", "AAAAAAAAAAAAAAAA", 0.5, "requested", True),
    ],
)
def test_examples(adaptive, votes, threshold, confidence, expected):
    voting = Voting(adaptive=adaptive, threshold=threshold, confidence=confidence)
    assert is_certain(tally_of(votes), LETTERS, voting) is expected


@pytest.mark.parametrize(
    ("adaptive", "votes", "expected"),
    [("never", "", 16), ("never", "AA", 14), ("lossless", "", 9), ("lossless", "AAAAAAAAB", 1), ("kept", "", 9)],
)
def test_waves(adaptive, votes, expected):
    assert count_needed_votes(tally_of(votes), LETTERS, Voting(adaptive=adaptive)) == expected


@pytest.mark.parametrize("tenths", range(11))
def test_a_share_that_equals_the_threshold_reaches_it(tenths):
    for of in (10, 20, 30, 110, 1000):
        assert reaches_threshold(tenths * of // 10, of, float(f"0.{tenths}" if tenths < 10 else "1.0"))


def test_many_samples_and_letters_take_little_time():
    voting = Voting(samples=64, threshold=0.55, confidence="valid", adaptive="kept")
    votes, letters = "", "ABCDEFGHIJ"
    while wave := count_needed_votes(tally_of(votes), letters, voting):
        votes += ("ABCAD-" * 20)[len(votes) : len(votes) + wave]
    assert is_certain(tally_of(votes), letters, voting) and len(votes) <= 64


@pytest.mark.parametrize("of", range(1, 101))
def test_a_threshold_reaches_itself_however_it_is_written(of):
    for votes in range(of + 1):
        assert reaches_threshold(votes, of, votes / of)
        if of in (10, 20, 25, 50, 100):
            assert reaches_threshold(votes, of, float(f"{votes * 100 // of / 100:.2f}"))
        if votes:
            assert not reaches_threshold(votes - 1, of, votes / of)


@pytest.mark.parametrize("adaptive", ["never", "lossless", "kept", "statistical"])
def test_with_one_sample_the_one_vote_decides(adaptive):
    voting = Voting(samples=1, adaptive=adaptive)
    assert count_needed_votes(tally_of(""), "AB", voting) == 1 and not is_certain(tally_of(""), "AB", voting)
    assert all(is_certain(tally_of(vote), "AB", voting) for vote in "AB-")


def test_too_many_votes_and_unknown_letters_are_refused():
    with pytest.raises(ValueError, match="5 votes were taken where voting.samples = 4"):
        is_certain(tally_of("AAAAA"), "AB", Voting(samples=4))
    with pytest.raises(ValueError, match="not all for one of the options A, B"):
        count_needed_votes(tally_of("AAC"), "AB", Voting(samples=4))


def test_the_cache_does_not_depend_on_letters():
    voting = Voting(samples=7, threshold=0.6)
    count_needed_votes(tally_of("AAB-"), "ABC", voting)
    before = _count_needed_votes.cache_info()
    assert count_needed_votes(tally_of("C-BC"), "ABC", voting) == count_needed_votes(tally_of("AAB-"), "ABC", voting)
    after = _count_needed_votes.cache_info()
    assert (after.misses, after.currsize) == (before.misses, before.currsize) and after.maxsize
