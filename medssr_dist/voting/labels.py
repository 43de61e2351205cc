"""From votes to a pseudo-label: majority answer, its confidence, and the threshold (paper section 3.2)."""

from __future__ import annotations

from medssr_dist.config.schema import Voting
from medssr_dist.data.records import Label, Question
from medssr_dist.voting.early_stopping import bound_confidences, find_decision
from medssr_dist.voting.tally import Tally


def label_question(
    question: Question, tally: Tally, voting: Voting, *, tokens: int, truncated: int, policy: str, sampling: str
) -> Label:
    """The label of `question` from all K votes, or from so many that the rest need not be taken (`bound.certain`).

    Args:
        tokens: generated in the votes of `tally`.
        truncated: those of them that were cut at the token limit.

    Raises:
        ValueError: the votes do not settle it, there are more than K, or one is for no option of the question.
    """
    found = find_decision(tally, tuple(question.options), voting)
    if found is None:
        raise ValueError(f"{tally} decides nothing yet on question {question.id}: K = {voting.samples}")
    return _label(
        question,
        tally,
        voting,
        outcome=found.outcome,
        kept=found.kept,
        answer=_leader(tally) if found.outcome == "labeled" else None,
        tokens=tokens,
        truncated=truncated,
        policy=policy,
        sampling=sampling,
    )


def quarantine_question(
    question: Question,
    tally: Tally,
    voting: Voting,
    reason: str,
    *,
    tokens: int,
    truncated: int,
    policy: str,
    sampling: str,
) -> Label:
    """The label of a question that the engines could not answer: none, with `reason` and the votes that it did get."""
    return _label(
        question,
        tally,
        voting,
        outcome="quarantined",
        kept=False,
        answer=None,
        reason=reason,
        tokens=tokens,
        truncated=truncated,
        policy=policy,
        sampling=sampling,
    )


def _leader(tally: Tally) -> str:
    return max(tally.counts, key=lambda item: item[1])[0]


def _label(question: Question, tally: Tally, voting: Voting, **fields) -> Label:
    of_requested, of_valid = bound_confidences(tally, tuple(question.options), voting)
    return Label(
        question=question,
        counts=dict(tally.counts),
        requested=voting.samples,
        taken=tally.taken,
        valid=tally.valid,
        confidence_requested=of_requested,
        confidence_valid=of_valid,
        **fields,
    )
