"""From votes to a pseudo-label: the majority answer, its confidence, and the threshold (paper section 3.2)."""

from __future__ import annotations

from typing import Literal

from medssr_dist.config.schema import Voting
from medssr_dist.data.records import Label, Question
from medssr_dist.voting.early_stopping import bound_confidence, find_decision
from medssr_dist.voting.tally import Tally


def label_question(
    question: Question, tally: Tally, voting: Voting, *, tokens: int, truncated: int, policy: str, sampling: str
) -> Label:
    """Return the label of `question` from all K votes, or from so many that the decision is certain (`is_certain`).

    Args:
        tokens: generated in the votes of `tally`.
        truncated: votes of `tally` that were cut at the token limit.
        policy: fingerprint of the policy that voted.
        sampling: hash of the way of sampling.

    Raises:
        ValueError: the votes do not determine a decision, there are more than K, or one is for none of the options.
    """
    decision = find_decision(tally, tuple(question.options), voting)
    if decision is None:
        raise ValueError(f"{tally} decides nothing yet on question {question.id}: K = {voting.samples}")
    return _make_label(
        question,
        tally,
        voting,
        outcome=decision.outcome,
        kept=decision.kept,
        answer=_find_leader(tally) if decision.outcome == "labeled" else None,
        reason="",
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
    """Return the label of a question that the engines could not answer: no answer, `reason`, and the votes taken."""
    return _make_label(
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


def _find_leader(tally: Tally) -> str:
    return max(tally.counts, key=lambda item: item[1])[0]


def _make_label(
    question: Question,
    tally: Tally,
    voting: Voting,
    *,
    outcome: Literal["labeled", "tie", "all_invalid", "rejected", "quarantined"],
    kept: bool,
    answer: str | None,
    reason: str,
    tokens: int,
    truncated: int,
    policy: str,
    sampling: str,
) -> Label:
    confidence = bound_confidence(tally, tuple(question.options), voting)
    return Label(
        question=question,
        outcome=outcome,
        answer=answer,
        counts=dict(tally.counts),
        requested=voting.samples,
        taken=tally.taken,
        valid=tally.valid,
        truncated=truncated,
        tokens=tokens,
        confidence_requested=confidence.requested,
        confidence_valid=confidence.valid,
        kept=kept,
        reason=reason,
        policy=policy,
        sampling=sampling,
    )
