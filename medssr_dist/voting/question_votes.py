"""What a rule of labels is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medssr_dist.data.records import Question, Vote

OptionShares = Mapping[str, float]  # letter of the question -> share, 0..1; the shares sum to 1 at most


@dataclass(frozen=True)
class QuestionVotes:
    """All K votes on a question.

    Attributes:
        question: as it is, without its known answer.
        votes: in the order of their seeds. `answer` is a letter of `question`, whatever order the policy saw; None is
        an
            invalid vote. `text` is empty in the built-in rules, which do not read it.

    Example: QuestionVotes(question, votes=(vote_b, vote_c, vote_b, vote_invalid))
    """

    question: Question
    votes: tuple[Vote, ...]


LabelRule = Callable[[QuestionVotes], OptionShares]


def share_weights(found: QuestionVotes, weight: Callable[[Vote], float]) -> OptionShares:
    """Return each option's share of the weights of the valid votes; {} where these sum to 0."""
    weights: dict[str, float] = {}
    for vote in found.votes:
        if vote.answer:
            weights[vote.answer] = weights.get(vote.answer, 0.0) + weight(vote)
    total = sum(weights.values())
    return {letter: one / total for letter, one in weights.items()} if total else {}
