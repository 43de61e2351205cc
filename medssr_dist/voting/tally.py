"""Votes counted, and the rule by which K of them become a label (paper section 3.2).

The rule does not look at which letter has which votes: two tallies with the same `RankedCounts` are decided alike, so
that what is worked out for one is remembered for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medssr_dist.config.schema import Voting


@dataclass(frozen=True, slots=True)
class Tally:
    """The votes taken on one question.

    Example: Tally.from_answers(["B", "C", "B", None]) is Tally(counts=(("B", 2), ("C", 1)), invalid=1)
    """

    counts: tuple[tuple[str, int], ...] = ()  # by letter, ascending; letters with votes only
    invalid: int = 0

    @classmethod
    def from_answers(cls, answers: Iterable[str | None]) -> Tally:
        tally = cls()
        for answer in answers:
            tally = tally.add(answer)
        return tally

    @property
    def valid(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def taken(self) -> int:
        return self.valid + self.invalid

    def add(self, answer: str | None) -> Tally:
        """With one more vote; None = an invalid one."""
        if answer is None:
            return Tally(self.counts, self.invalid + 1)
        counts = dict(self.counts)
        counts[answer] = counts.get(answer, 0) + 1
        return Tally(tuple(sorted(counts.items())), self.invalid)


class RankedCounts(NamedTuple):
    """A tally without its letters."""

    counts: tuple[int, ...]  # votes of every option, most first, zeros included
    invalid: int

    @property
    def valid(self) -> int:
        return sum(self.counts)

    @property
    def taken(self) -> int:
        return self.valid + self.invalid


class Decision(NamedTuple):
    """What K votes say. The answer of a `labeled` question is the letter with the most votes."""

    outcome: str  # labeled, tie, all_invalid, or rejected: not kept whatever its outcome
    kept: bool


class DecisionRule(NamedTuple):
    """The part of `config.Voting` that decides; small, and a key of caches."""

    samples: int
    threshold: float
    confidence: str
    adaptive: str
    error_rate: float

    @classmethod
    def from_config(cls, voting: Voting) -> DecisionRule:
        return cls(voting.samples, voting.threshold, voting.confidence, voting.adaptive, voting.error_rate)

    def left(self, standing: RankedCounts) -> int:
        """Votes not taken. Raises ValueError where there are more than K."""
        left = self.samples - standing.taken
        if left < 0:
            raise ValueError(f"{standing.taken} votes were taken where voting.samples = {self.samples}")
        return left

    def keeps(self, votes: int, valid: int) -> bool:
        """Whether the label of a winner with `votes` of `valid` > 0 is kept."""
        return reaches_threshold(votes, valid if self.confidence == "valid" else self.samples, self.threshold)

    def decision(self, standing: RankedCounts) -> Decision:
        """That of all K votes: the winner must be alone at the top; a tie, and no valid vote, are never kept."""
        top, second = standing.counts[:2]
        if top == 0:
            return Decision("all_invalid", False)
        if top == second:
            return Decision("tie", False)
        return Decision("labeled", self.keeps(top, standing.valid))


def reaches_threshold(votes: int, of: int, threshold: float) -> bool:
    """Whether the share `votes` / `of` reaches the threshold: the one comparison there is.

    The quotient is the double nearest to the true one, and so is a threshold, be it written as 0.3 or computed as 5/6:
    equal numbers compare equal, and never does a larger share fail where a smaller one passes. A product
    (7 >= 0.07 * 100 = 7.000000000000001) or the exact value of the double (1/10 >= Fraction(0.1)) would drop labels
    that are exactly at the threshold.
    """
    return votes / of >= threshold


def rank_counts(tally: Tally, letters: Sequence[str]) -> RankedCounts:
    """Where the options stand. Raises ValueError where a vote is for none of them."""
    counts = sorted((count for _, count in tally.counts), reverse=True)
    if not {letter for letter, _ in tally.counts} <= set(letters):
        raise ValueError(f"votes {dict(tally.counts)} are not all for one of the options {', '.join(letters)}")
    return RankedCounts((*counts, *[0] * (len(letters) - len(counts))), tally.invalid)
