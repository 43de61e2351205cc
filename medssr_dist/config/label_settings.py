"""The part of the config that says how votes become labels: the rule, and the threshold with a guarantee."""

from __future__ import annotations

from pydantic import Field

from medssr_dist.config.base import Section, Source

MAJORITY = "majority"  # value of `voting.rule`
RULES = (MAJORITY, "length", "logprob", "agreement")


class Calibrate(Section):
    """Chooses the threshold on human-labelled questions, so that the kept labels have the precision wanted."""

    data: list[Source] = Field(
        min_length=1,
        description="human-labelled questions, which are voted on like the run's own; none of them may be a seed, a "
        "training question or a benchmark item",
    )
    precision: float = Field(
        0.90, gt=0, lt=1, description="share of the kept labels that must be right, on questions drawn like `data`"
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="probability, over the draw of `data`, that the precision is reached"
    )
    by_kind: bool = Field(
        True,
        description="rare and common questions get thresholds of their own where `data` has enough of both; false = "
        "one threshold for both",
    )


class OnlineVote(Section):
    """Votes of the policy in training, in place of those of the base policy (TTRL, arXiv 2504.16084)."""

    every: int = Field(
        ge=1,
        description="after every N steps the policy votes again on the questions of the next N steps; their labels and "
        "whether they are kept follow from these votes",
    )
    teacher: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of a moving average of the policy's weights, which votes in its place, e.g. 0.95; "
        "null = the policy itself votes",
    )
