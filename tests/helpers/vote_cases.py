"""Votes as strings of letters ("-" = invalid), and the decisions of all completions."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement

from hypothesis import strategies as st

from medssr_dist.config.voting import Voting
from medssr_dist.voting.tally import Tally

LETTERS = "ABCDE"


def tally_of(votes: str) -> Tally:
    return Tally.from_answers(None if vote == "-" else vote for vote in votes)


@lru_cache(None)
def full_decision(votes: str, threshold: float, confidence: str) -> tuple[str, str | None, bool]:
    """(outcome, answer, kept) of all K votes, written independently of the code under test."""
    counts = {letter: votes.count(letter) for letter in set(votes) - {"-"}}
    if not counts:
        return "all_invalid", None, False
    most = max(counts.values())
    winners = [letter for letter, count in counts.items() if count == most]
    if len(winners) > 1:
        return "tie", None, False
    of = len(votes) if confidence == "requested" else sum(counts.values())
    return "labeled", winners[0], most / of >= threshold


def all_decisions(votes: str, letters: str, voting: Voting) -> set[tuple]:
    remaining = voting.samples - len(votes)
    return {
        full_decision("".join(sorted(votes + "".join(rest))), voting.threshold, voting.confidence)
        for rest in combinations_with_replacement(letters + "-", remaining)
    }


@st.composite
def unfinished(draw):
    letters = LETTERS[: draw(st.integers(2, 5))]
    samples = draw(st.integers(1, 8))
    votes = draw(st.text(letters + "-", max_size=samples))
    threshold = draw(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.6, 0.7, 0.75, 1.0]))
    confidence = draw(st.sampled_from(["requested", "valid"]))
    adaptive = draw(st.sampled_from(["lossless", "kept"]))
    return votes, letters, Voting(samples=samples, threshold=threshold, confidence=confidence, adaptive=adaptive)
