"""From votes to a pseudo-label: the majority answer, its confidence, and the threshold (paper section 3.2)."""

from __future__ import annotations

import math
from typing import Literal

from medssr_dist.config.voting import Voting
from medssr_dist.data.records import Label, Question
from medssr_dist.voting.early_stopping import bound_confidence, find_decision
from medssr_dist.voting.question_votes import OptionShares
from medssr_dist.voting.tally import Tally, reaches_threshold

_Outcome = Literal["labeled", "tie", "all_invalid", "rejected", "quarantined"]
_EQUAL = 1e-12  # shares that differ by less are equal: they are sums in floating point


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


def label_by_rule(
    question: Question,
    tally: Tally,
    shares: OptionShares,
    voting: Voting,
    *,
    tokens: int,
    truncated: int,
    policy: str,
    sampling: str,
) -> Label:
    """Return the label that a rule other than the majority gives after all K votes.

    The winner is the option with the largest share; two equal ones are a tie. The share is the confidence among the
    valid votes; times valid / K it is the confidence among the votes requested.

    Args:
        shares: of the options, as the rule returns them; {} = there is no winner.

    Raises:
        ValueError: not all K votes are taken.
    """
    if tally.taken != voting.samples:
        raise ValueError(f"rule {voting.rule} needs all {voting.samples} votes on question {question.id}, not {tally}")
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    is_tie = len(ranked) > 1 and math.isclose(ranked[0][1], ranked[1][1], rel_tol=_EQUAL, abs_tol=_EQUAL)
    top = ranked[0][1] if ranked else 0.0
    all_valid = tally.valid == voting.samples  # then no rounding error may come in
    of = {"valid": top, "requested": top if all_valid else top * tally.valid / voting.samples}
    outcome: _Outcome = "all_invalid" if not tally.valid else "tie" if is_tie or not ranked else "labeled"
    label = _make_label(
        question,
        tally,
        voting,
        outcome=outcome,
        kept=outcome == "labeled" and reaches_threshold(of[voting.confidence], 1, voting.threshold),
        answer=ranked[0][0] if outcome == "labeled" else None,
        reason="",
        tokens=tokens,
        truncated=truncated,
        policy=policy,
        sampling=sampling,
    )
    confidence = {f"confidence_{name}": (share, share) for name, share in of.items()}
    return label.model_copy(update=confidence | {"rule": voting.rule})


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
    outcome: _Outcome,
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
