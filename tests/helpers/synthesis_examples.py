"""A summary of a synthesis step, as the step itself writes it."""

from __future__ import annotations

from medssr_dist.config.synthesis import Budget
from medssr_dist.data.wilson import measure_share
from medssr_dist.synthesis.synthesis_summary import AlphaShares, LetterBalance, ModelReplies, SynthesisSummary

SUMMARY = SynthesisSummary(
    requested=1200,
    accepted=1000,
    rejected_by_reason={"near_duplicate": 50, "not_parsable": 150},
    stopped_by="count",
    budget=Budget(),
    surplus=13,
    alpha=AlphaShares(asked=0.5, requests=measure_share(610, 1200), accepted=measure_share(500, 1000)),
    letter_balance=LetterBalance(first_option={"A": 251, "B": 749}, entity_option={"A": 7, "E": 9}),
    models=ModelReplies(asked=["gpt-x"], answered={"gpt-x-0613": 1190, "gpt-y|z": 10}),
    prompt_tokens=1234567,
    completion_tokens=7654,
    tokens=7654,
    usd=3.456,
    lost_tokens=0,
    requests_sent=1213,
    requests_replayed=0,
    http_attempts=1300,
    asked_again=4,
    lost=2,
    held_s=0.0,
    started="2026-01-02T03:04:05+0000",
    ended="2026-01-02T04:04:05+0000",
    seconds=3600.0,
    checked_against=["bench"],
)


def summary(**changes) -> SynthesisSummary:
    """Return SUMMARY with some fields changed."""
    return SUMMARY.model_copy(update=changes)
