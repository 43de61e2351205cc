"""From a tally to a label: winner, ties, invalid votes, both denominators, and bounds with votes not taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from vote_cases import all_decisions, full_decision, tally_of, unfinished

from medssr_dist.config.voting import Voting
from medssr_dist.data.records import Label, Question
from medssr_dist.voting.early_stopping import is_certain
from medssr_dist.voting.labels import label_question, quarantine_question

QUESTION = Question.make("Which vitamin prevents scurvy?", ["A", "B12", "C", "D", "E"], source="set", truth="C")
TOTALS = {"tokens": 30, "truncated": 1, "policy": "p", "sampling": "s"}


def label(votes: str, **voting) -> Label:
    return label_question(QUESTION, tally_of(votes), Voting(**({"samples": len(votes)} | voting)), **TOTALS)


def test_the_example_in_the_record():
    found = label("BBBBBCC-")
    assert (found.outcome, found.answer, found.counts) == ("labeled", "B", {"B": 5, "C": 2})
    assert (found.requested, found.taken, found.valid, found.tokens, found.truncated) == (8, 8, 7, 30, 1)
    assert found.confidence_requested == (5 / 8, 5 / 8) and found.confidence_valid == (5 / 7, 5 / 7)
    stopped = label("BBBBB", samples=8)
    assert (stopped.answer, stopped.taken, stopped.kept) == ("B", 5, True)
    assert stopped.confidence_requested == (5 / 8, 1) and stopped.confidence_valid == (5 / 8, 1)


@pytest.mark.parametrize(
    ("votes", "outcome", "answer"),
    [("AABB", "tie", None), ("----", "all_invalid", None), ("A---", "labeled", "A"), ("ABBA--C", "tie", None)],
)
def test_ties_and_invalid_votes_have_their_own_outcomes(votes, outcome, answer):
    found = label(votes, threshold=0.0)
    assert (found.outcome, found.answer, found.kept) == (outcome, answer, outcome == "labeled")


@pytest.mark.parametrize(
    ("votes", "threshold", "confidence", "kept"),
    [
        ("AAAB", 0.75, "requested", True),
        ("AAAB", 0.76, "requested", False),
        ("AA--", 0.75, "requested", False),
        ("AA--", 0.75, "valid", True),
        ("AAABBBCC-D", 0.3, "requested", False),  # a tie is never kept
        ("AAABBCC---", 0.3, "requested", True),  # 3 of 10 reach 0.3
        ("A---------", 0.0, "requested", True),
    ],
)
def test_threshold_and_denominator(votes, threshold, confidence, kept):
    assert label(votes, threshold=threshold, confidence=confidence).kept is kept


def test_only_invalid_votes_give_confidence_zero():
    found = label("---")
    assert found.confidence_requested == found.confidence_valid == (0, 0)


def test_rejected_without_a_winner():
    found = label("AABBCCDDE", samples=16, threshold=0.6, adaptive="kept")
    assert (found.outcome, found.answer, found.kept) == ("rejected", None, False)
    assert found.confidence_requested == (2 / 16, 9 / 16)


def test_a_decision_that_is_not_certain_is_refused():
    with pytest.raises(ValueError, match="decides nothing yet"):
        label("AAAA", samples=16)


@given(unfinished())
def test_a_stopped_vote_decides_as_all_votes_would(case):
    votes, letters, voting = case
    question = Question.make("Which?", [f"option {letter}" for letter in letters], source="set")
    if not is_certain(tally_of(votes), letters, voting):
        return
    found = label_question(question, tally_of(votes), voting, **TOTALS)
    for outcome, answer, kept in all_decisions(votes, letters, voting):
        assert found.kept == kept
        if voting.adaptive == "lossless" or kept:
            assert (found.outcome, found.answer) == (outcome, answer)


@given(unfinished())
def test_intervals_hold_the_confidence_of_all_votes(case):
    votes, letters, voting = case
    question = Question.make("Which?", [f"option {letter}" for letter in letters], source="set")
    if not votes or not is_certain(tally_of(votes), letters, voting):
        return
    found = label_question(question, tally_of(votes), voting, **TOTALS)
    for rest in (letters[0], letters[-1], "-"):
        full = votes + rest * (voting.samples - len(votes))
        most = max(full.count(letter) for letter in letters)
        valid = len(full) - full.count("-")
        assert found.confidence_requested[0] <= most / len(full) <= found.confidence_requested[1]
        if valid:
            assert found.confidence_valid[0] <= most / valid <= found.confidence_valid[1]


def test_statistical_stopping_takes_the_likely_decision():
    found = label("CCCCCC", samples=16, adaptive="statistical", error_rate=0.2)
    assert (found.outcome, found.answer, found.kept, found.taken) == ("labeled", "C", True, 6)
    assert full_decision("CCCCCC" + "C" * 10, 0.5, "requested") == ("labeled", "C", True)


def test_a_quarantined_label_has_its_reason():
    found = quarantine_question(QUESTION, tally_of("AB"), Voting(samples=8), "in flight at 2 engine deaths", **TOTALS)
    assert (found.outcome, found.answer, found.kept, found.taken) == ("quarantined", None, False, 2)
    assert found.reason == "in flight at 2 engine deaths"
