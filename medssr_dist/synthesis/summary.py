"""What a synthesis came to, as numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from medssr_dist.config import Config
from medssr_dist.shares import share_of

if TYPE_CHECKING:
    from medssr_dist.synthesis.run import _Work


def summarize(config: Config, work: _Work, started: float) -> dict:
    """The step's summary.

    `requests_sent`, `http_attempts`, `asked_again`, `lost`, `held_s` (waiting for the vote) and `seconds` are of
    the attempt that ended the step; all else is of the whole folder. `surplus` replies came after the last accepted
    question: they are paid for and kept in the journal, but not used. `alpha` holds shares with their 95% Wilson
    intervals.
    """
    outputs, spending, supply = work.outputs, work.spending, work.supply
    done, accepted = outputs.judged.done, outputs.judged.accepted
    return {
        "requested": done,
        "accepted": accepted,
        "rejected_by_reason": dict(sorted(outputs.rejected.items())),
        "stopped_by": supply.stopped_by,
        "budget": config.synthesis.budget.model_dump(),
        "surplus": len(work.journal) - done,
        "alpha": {
            "asked": config.synthesis.alpha,
            "requests": share_of(outputs.rare, done),
            "accepted": share_of(outputs.accepted_rare, accepted),
        },
        "letter_balance": {
            "first_option": dict(sorted(outputs.first_option.items())),
            "entity_option": dict(sorted(outputs.entity_option.items())),
        },
        "models": {"asked": config.synthesis.models, "answered": dict(outputs.answered_by.most_common())},
        "prompt_tokens": spending.prompt_tokens,
        "completion_tokens": spending.completion_tokens,
        "tokens": spending.completion_tokens,
        "usd": round(spending.usd, 6),
        "lost_tokens": spending.lost_tokens,
        "requests_sent": supply.asked,
        "requests_replayed": len(work.journal) - supply.asked,
        "http_attempts": work.attempts,
        "asked_again": supply.asked_again,
        "lost": spending.lost,
        "held_s": round(supply.held_s, 2),
        "started": _timestamp(started),
        "ended": _timestamp(time.time()),
        "seconds": round(time.time() - started, 2),
    }


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
