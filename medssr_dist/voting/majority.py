"""From votes to a pseudo-label: majority answer, its confidence, and the threshold (paper section 3.2)."""

from __future__ import annotations

from collections import Counter

from medssr_dist.config import Voting
from medssr_dist.records import Label, Question, Vote


def decide(question: Question, votes: list[Vote], voting: Voting) -> Label:
    """The label of `question` from its K votes.

    The majority answer must be alone at the top: a tie, and a question on which no vote is valid,
    are outcomes of their own and are never kept.
    """
    counts = Counter(vote.answer for vote in votes if vote.answer is not None)
    valid = sum(counts.values())
    top = counts.most_common(2)
    outcome = "all_invalid" if not top else "tie" if len(top) == 2 and top[0][1] == top[1][1] else "labeled"
    winner_votes = top[0][1] if top else 0
    of_requested = winner_votes / voting.samples
    of_valid = winner_votes / valid if valid else 0.0
    confidence = of_requested if voting.confidence == "requested" else of_valid
    return Label(
        question=question,
        outcome=outcome,
        answer=top[0][0] if outcome == "labeled" else None,
        counts=dict(sorted(counts.items())),
        requested=voting.samples,
        valid=valid,
        confidence_requested=of_requested,
        confidence_valid=of_valid,
        kept=outcome == "labeled" and confidence >= voting.threshold,
        policy=votes[0].policy,
        sampling=votes[0].sampling,
    )
