"""Counted votes, and the rule that turns K of them into a label (paper section 3.2).

The rule does not depend on which letter has which votes: two tallies with equal `RankedCounts` get the same decision,
so that what is computed for one is cached for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from medssr_dist.config.voting import Voting


@dataclass(frozen=True, slots=True)
class Tally:
    """The votes taken on one question.

    Example: Tally.from_answers(["B", "C", "B", None]) == Tally(counts=(("B", 2), ("C", 1)), invalid=1)

    Attributes:
        counts: (letter, votes) in the order of the letters, without letters that have no vote.
        invalid: votes without an answer.
    """

    counts: tuple[tuple[str, int], ...] = ()
    invalid: int = 0

    @classmethod
    def from_answers(cls, answers: Iterable[str | None]) -> Tally:
        """Count `answers`; None = an invalid vote."""
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
        """Return the tally with one more vote; None = an invalid vote."""
        if answer is None:
            return Tally(self.counts, self.invalid + 1)
        counts = dict(self.counts)
        counts[answer] = counts.get(answer, 0) + 1
        return Tally(tuple(sorted(counts.items())), self.invalid)


class RankedCounts(NamedTuple):
    """A tally without its letters.

    Example: with the options A to D, the tally of "BBC-" is RankedCounts(counts=(2, 1, 0, 0), invalid=1)

    Attributes:
        counts: votes for each option, in descending order, zeros included.
    """

    counts: tuple[int, ...]
    invalid: int

    @property
    def valid(self) -> int:
        return sum(self.counts)

    @property
    def taken(self) -> int:
        return self.valid + self.invalid


class Decision(NamedTuple):
    """The result of the vote on a question. The answer of a `labeled` question is the letter with the most votes.

    Attributes:
        outcome: `rejected` = the label is not kept, whatever its outcome would be.
    """

    outcome: Literal["labeled", "tie", "all_invalid", "rejected"]
    kept: bool


class DecisionRule(NamedTuple):
    """The fields of `config.Voting` that the decision depends on; hashable, for caches."""

    samples: int
    threshold: float
    confidence: str
    adaptive: str
    error_rate: float

    @classmethod
    def from_config(cls, voting: Voting) -> DecisionRule:
        return cls(voting.samples, voting.threshold, voting.confidence, voting.adaptive, voting.error_rate)

    def remaining(self, ranked: RankedCounts) -> int:
        """Return the number of votes not taken. Raises ValueError where more than K are taken."""
        remaining = self.samples - ranked.taken
        if remaining < 0:
            raise ValueError(f"{ranked.taken} votes were taken where voting.samples = {self.samples}")
        return remaining

    def keeps(self, votes: int, valid: int) -> bool:
        """Whether the label of a winner with `votes` of `valid` > 0 valid votes is kept."""
        return reaches_threshold(votes, valid if self.confidence == "valid" else self.samples, self.threshold)

    def decide(self, ranked: RankedCounts) -> Decision:
        """Return the decision of all K votes. A tie for the most votes, or no valid vote, gives no label."""
        top, second = ranked.counts[:2]
        if top == 0:
            return Decision("all_invalid", False)
        if top == second:
            return Decision("tie", False)
        return Decision("labeled", self.keeps(top, ranked.valid))


def reaches_threshold(votes: float, of: int, threshold: float) -> bool:
    """Whether the share `votes` / `of` reaches the threshold. All comparisons with a threshold use this function.

    The quotient is the double nearest to the exact share. So is a threshold, whether it is written as 0.3 or computed
    as 5/6. Equal numbers therefore compare equal, and a larger share never fails where a smaller one passes. A product
    (7 >= 0.07 * 100 = 7.000000000000001), or the exact value of the double (1/10 >= Fraction(0.1)), would drop labels
    whose share is exactly the threshold.
    """
    return votes / of >= threshold


def rank_counts(tally: Tally, letters: Sequence[str]) -> RankedCounts:
    """Return the votes for each of the options `letters`. Raises ValueError where a vote is for none of them."""
    counts = sorted((count for _, count in tally.counts), reverse=True)
    if not {letter for letter, _ in tally.counts} <= set(letters):
        raise ValueError(f"votes {dict(tally.counts)} are not all for one of the options {', '.join(letters)}")
    return RankedCounts((*counts, *[0] * (len(letters) - len(counts))), tally.invalid)
