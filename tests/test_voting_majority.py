"""From votes to a pseudo-label: ties, invalid votes, both denominators, the threshold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.config import Voting
from medssr_dist.records import Label, Question, Vote
from medssr_dist.voting.majority import decide

QUESTION = Question.make("Which vitamin prevents scurvy?", ["A", "B12", "C", "D"], source="set", truth="C")


def label(answers: str, **voting) -> Label:
    """The label from one vote a letter; '-' is an invalid one."""
    common = {"question_id": QUESTION.id, "policy": "p", "sampling": "s", "method": None, "text": "", "tokens": 3}
    votes = [
        Vote(seed=seed, answer=None if letter == "-" else letter, truncated=False, **common)
        for seed, letter in enumerate(answers)
    ]
    return decide(QUESTION, votes, Voting(samples=len(answers), **voting))


def test_the_records_worked_example():
    found = label("BBBBBCC-")
    assert (found.outcome, found.answer, found.counts) == ("labeled", "B", {"B": 5, "C": 2})
    assert (found.requested, found.valid) == (8, 7)
    assert (found.confidence_requested, found.confidence_valid) == (5 / 8, 5 / 7)
    assert (found.policy, found.sampling, found.question) == ("p", "s", QUESTION)


def test_the_truth_has_no_part_in_the_label():
    assert label("AAAC").answer == "A"


@pytest.mark.parametrize("answers", ["AABB", "AB--", "ABCD", "AABBC"])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_a_tie_has_no_answer_and_is_never_kept(answers, threshold):
    found = label(answers, threshold=threshold)
    assert (found.outcome, found.answer, found.kept) == ("tie", None, False)
    assert found.confidence_requested == max(found.counts.values()) / len(answers)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("confidence", ["requested", "valid"])
def test_all_invalid_is_an_outcome_of_its_own(threshold, confidence):
    found = label("----", threshold=threshold, confidence=confidence)
    assert (found.outcome, found.answer, found.kept, found.counts) == ("all_invalid", None, False, {})
    assert (found.valid, found.confidence_requested, found.confidence_valid) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("answers", "confidence", "threshold", "kept"),
    [
        ("AAB-", "requested", 0.5, True),  # exactly at the threshold
        ("AAB-", "requested", 0.51, False),
        ("AAB-", "valid", 0.66, True),  # 2 of 3
        ("AAB-", "valid", 0.67, False),
        ("AAAB" + "-" * 6, "requested", 0.3, True),  # 3/10 and 0.3 are the same number
        ("A---", "valid", 1.0, True),
        ("A---", "requested", 1.0, False),
        ("AAAA", "requested", 1.0, True),
        ("A" + "-" * 15, "requested", 0.0, True),  # 0 keeps whatever has a label
    ],
)
def test_threshold_and_denominator(answers, confidence, threshold, kept):
    assert label(answers, confidence=confidence, threshold=threshold).kept is kept


ANSWERS = st.text(alphabet="ABCD-", min_size=1, max_size=12)


@given(answers=ANSWERS, data=st.data(), threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_order_of_votes_never_matters(answers, data, threshold):
    shuffled = "".join(data.draw(st.permutations(answers)))
    assert label(answers, threshold=threshold) == label(shuffled, threshold=threshold)


@given(answers=ANSWERS)
def test_threshold_0_keeps_all_that_is_labeled_and_nothing_else(answers):
    found = label(answers, threshold=0.0)
    assert found.kept == (found.outcome == "labeled") == (found.answer is not None)
    assert 0 <= found.confidence_requested <= found.confidence_valid <= 1
