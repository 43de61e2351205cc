"""The built-in rules against counts by hand, and a user's rule: tried first, checked, refused with its traceback."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from vote_cases import tally_of

from medssr_dist.config.voting import Voting
from medssr_dist.data.records import Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.voting.label_rule import NamedRule, load_label_rule
from medssr_dist.voting.labels import label_by_rule, label_question

QUESTION = Question.make("Which?", ["iron", "zinc", "gold", "lead"], source="set", truth="B")
FACTS = {"tokens": 0, "truncated": 0, "policy": "p", "sampling": "s"}


def vote(seed: int, answer: str | None, tokens=10, logprob=-1.0, order="", paraphrase=0) -> Vote:
    return Vote(
        question_id=QUESTION.id,
        policy="p",
        sampling="s",
        seed=seed,
        answer=answer,
        method=None,
        text="",
        tokens=tokens,
        truncated=False,
        order=order,
        paraphrase=paraphrase,
        logprob=logprob,
    )


def shares(name: str, *votes: Vote):
    return load_label_rule(name).share(QUESTION, list(votes))


def test_majority_counts_valid_votes_alike():
    found = shares("majority", vote(0, "B", 5), vote(1, "C", 500), vote(2, "B"), vote(3, None))
    assert found == {"B": 2 / 3, "C": 1 / 3}


def test_length_counts_tokens():
    assert shares("length", vote(0, "B", 30), vote(1, "C", 10), vote(2, None, 99)) == {"B": 0.75, "C": 0.25}
    assert shares("length", vote(0, None)) == {}


def test_logprob_counts_mean_probabilities():
    found = shares("logprob", vote(0, "B", logprob=math.log(0.9)), vote(1, "C", logprob=math.log(0.3)))
    assert found == pytest.approx({"B": 0.75, "C": 0.25})
    with pytest.raises(InputError, match="has no log-prob"):
        shares("logprob", vote(0, "B", logprob=None))


def test_agreement_gives_each_form_one_voice():
    """Three orders: B wins the first with 2 of 3, A the second; the third is a tie."""
    votes = [vote(i, answer, order="ABCD") for i, answer in enumerate("BBA")]
    votes += [vote(3 + i, answer, order="BCDA") for i, answer in enumerate("AAA")]
    votes += [vote(6 + i, answer, order="CDAB") for i, answer in enumerate("AB")]
    assert shares("agreement", *votes) == {"B": 1 / 3, "A": 1 / 3}
    stems = [vote(0, "B"), vote(1, "C", paraphrase=1), vote(2, "B", paraphrase=2), vote(3, None, paraphrase=3)]
    assert shares("agreement", *stems) == {"B": 0.5, "C": 0.25}


def label(votes: str, found, voting: Voting):
    return label_by_rule(QUESTION, tally_of(votes), found, voting, **FACTS)


def voting(rule="length", **fields) -> Voting:
    return Voting(**{"samples": 4, "adaptive": "never", "rule": rule, **fields})


def test_the_largest_share_is_the_label_and_its_confidence():
    found = label("BCC-", {"B": 0.7, "C": 0.3}, voting(confidence="valid", threshold=0.7))
    assert (found.outcome, found.answer, found.kept, found.rule) == ("labeled", "B", True, "length")
    assert found.confidence_valid == (0.7, 0.7)
    assert found.confidence_requested == pytest.approx((0.525, 0.525))
    assert found.counts == {"B": 1, "C": 2}
    assert not label("BCC-", {"B": 0.7, "C": 0.3}, voting(threshold=0.7)).kept  # of those requested


def test_equal_shares_and_no_shares_give_no_label():
    assert label("BCBC", {"B": 0.5, "C": 0.1 + 0.2 + 0.2}, voting()).outcome == "tie"
    assert label("----", {}, voting()).outcome == "all_invalid"
    nothing = label("BBBB", {}, voting())
    assert (nothing.outcome, nothing.answer, nothing.kept) == ("tie", None, False)


def test_a_rule_waits_for_all_votes():
    with pytest.raises(ValueError, match="needs all 4 votes"):
        label("BC", {"B": 1.0}, voting())


@pytest.mark.parametrize("votes", ["BBBC", "BBCC", "B---", "----", "ABCD", "BBC-"])
@pytest.mark.parametrize("confidence", ["requested", "valid"])
@pytest.mark.parametrize("threshold", [0.25, 0.5, 2 / 3, 0.75])
def test_the_rule_of_majority_labels_as_the_majority(votes, confidence, threshold):
    settings = Voting(samples=4, adaptive="never", confidence=confidence, threshold=threshold)
    found = shares("majority", *(vote(i, None if one == "-" else one) for i, one in enumerate(votes)))
    assert label(votes, found, settings) == label_question(QUESTION, tally_of(votes), settings, **FACTS)


# --- a user's rule ----------------------------------------------------------------------------------


def last_valid_vote(found):
    """Example of a user's rule: the last vote decides."""
    answers = [vote.answer for vote in found.votes if vote.answer]
    return {answers[-1]: 1.0} if answers else {}


def peeks(found):
    return {found.question.truth: 1.0} if found.question.truth else {}


def fails(found):
    return {"B": 1 / len([vote for vote in found.votes if vote.answer])}


def not_a_mapping(found):
    return "B"


def too_much(found):
    return {"A": 0.8, "B": 0.7}


def unknown_letter(found):
    return {"Z": 1.0}


def not_finite(found):
    return {"A": math.nan}


def test_a_users_rule_gives_the_label():
    rule = load_label_rule(f"{__name__}:last_valid_vote")
    assert rule.share(QUESTION, [vote(2, "C"), vote(1, "B"), vote(3, None)]) == {"C": 1.0}


def test_a_rule_never_sees_the_known_answer():
    assert load_label_rule(f"{__name__}:peeks").share(QUESTION, [vote(0, "C")]) == {}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("fails", "ZeroDivisionError"),
        ("not_a_mapping", "AttributeError"),
        ("too_much", "sum to 1.5"),
        ("unknown_letter", "'Z'"),
        ("not_finite", "nan"),
    ],
)
def test_a_rule_that_fails_is_refused_before_the_vote(name, found):
    with pytest.raises(InputError, match=found) as caught:
        load_label_rule(f"{__name__}:{name}")
    assert "voting.rule" in str(caught.value) and "correct the rule" in str(caught.value)


def test_the_traceback_of_a_rule_is_written_into_the_run(tmp_path):
    rule = NamedRule("mine:fails", fails)
    with pytest.raises(InputError, match="traceback is in") as caught:
        rule.share(QUESTION, [vote(0, None)], tmp_path)
    (file,) = tmp_path.iterdir()
    assert str(file) in str(caught.value) and "len([vote for vote" in file.read_text()
    assert isinstance(file, Path)


@pytest.mark.parametrize("name", ["no_such_module_anywhere:rule", f"{__name__}:absent", "a b:c"])
def test_a_rule_that_cannot_be_found_is_refused(name):
    with pytest.raises(InputError, match=r"voting\.rule"):
        load_label_rule(name)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"rule": "length"}, "adaptive=never"),
        ({"rule": "mine:rule", "adaptive": "kept"}, "adaptive=never"),
        ({"rule": "median", "adaptive": "never"}, "neither majority, length"),
        ({"rule": "mine:rule", "adaptive": "never", "keep_text": False}, "keep_text=true"),
        ({"rule": "agreement", "adaptive": "never"}, "shuffle_options=true"),
    ],
)
def test_settings_that_do_not_fit_a_rule_are_refused(fields, found):
    with pytest.raises(ValueError, match=found):
        Voting(**fields)
