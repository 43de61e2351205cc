"""How many questions `voting.kept` kept labels need."""

from __future__ import annotations

import random

import pytest
from config_builder import make_config
from pydantic import ValidationError
from stream_parts import label, question

from medssr_dist.errors import InputError
from medssr_dist.run import demand
from medssr_dist.run.demand import FixedDemand, KeptDemand, estimate_questions, make_demand, refuse_unvoted_demand


def test_the_estimate_starts_at_the_assumed_number():
    assert estimate_questions(0, 0, wanted=50, assumed=100) == 100
    assert estimate_questions(0, 0, wanted=50, assumed=10) == 50  # fewer questions than labels cannot do


@pytest.mark.parametrize(
    ("labels", "kept", "expected"),
    [(60, 30, 100), (100, 50, 100), (120, 55, 120), (1000, 0, 6100), (49, 49, 51)],
)
def test_the_estimate_follows_the_share_of_kept_labels(labels, kept, expected):
    found = estimate_questions(labels, kept, wanted=50, assumed=100)
    assert found == pytest.approx(expected, rel=0.02) and found >= labels
    assert estimate_questions(labels, kept, 50, 100, margin=2.0) >= found


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_rounds_with_a_margin_are_few(share):
    """Round after round until enough is kept, whatever share was assumed."""
    rng, labels, kept, rounds, needed = random.Random(7), 0, 0, 0, 0
    while kept < 2000:
        rounds += 1
        for _ in range(estimate_questions(labels, kept, 2000, assumed=2500, margin=2.0) - labels):
            labels += 1
            needed += kept < 2000
            kept += rng.random() < share
    assert rounds <= 3 and labels <= max(2500, 1.15 * needed)


@pytest.fixture
def labels_file(tmp_path, monkeypatch):
    monkeypatch.setattr(demand, "_READ_S", 0.0)
    return tmp_path / "labeled.jsonl"


def append(file, kept, count=1):
    with open(file, "a", encoding="utf-8") as stream:
        for _ in range(count):
            stream.write(label(question(0), kept).model_dump_json() + "\n")


def test_a_following_vote_changes_the_demand(labels_file):
    following = KeptDemand(labels_file, kept=2, assumed=4, vote_follows=True)
    alone = KeptDemand(labels_file, kept=2, assumed=4, vote_follows=False)
    assert (following.count_wanted(), following.is_settled) == (4, False)
    assert (alone.count_wanted(), alone.is_settled) == (4, True)
    append(labels_file, kept=False, count=5)
    assert following.count_wanted() > 8 and not following.is_settled
    append(labels_file, kept=True, count=2)
    assert (following.count_wanted(), following.is_settled) == (7, True)
    assert (alone.count_wanted(), alone.is_settled) == (7, True)


def test_the_config_chooses_the_demand(labels_file):
    assert isinstance(make_demand(make_config(), labels_file, vote_follows=True), FixedDemand)
    assert make_demand(make_config(), labels_file, vote_follows=True).count_wanted() == 4
    kept = make_config(voting={"kept": 8})
    assert make_demand(kept, labels_file, vote_follows=True).count_wanted() == 8


def test_bad_combinations_are_refused_in_one_line():
    with pytest.raises(ValidationError, match="voting.kept = 19 is above the limit of requests, .*candidates = 18 "):
        make_config(voting={"kept": 19})
    kept = make_config(voting={"kept": 18})
    with pytest.raises(InputError, match="voting.kept = 18 needs the vote.*voting.kept=0"):
        refuse_unvoted_demand(kept, ("synthesize",))
    for steps in (("vote",), ("train",), ("synthesize", "vote", "train", "evaluate")):
        refuse_unvoted_demand(kept, steps)
    refuse_unvoted_demand(make_config(), ("synthesize",))
