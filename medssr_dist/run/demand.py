"""How many questions synthesis has to write: a fixed number, or as many as `voting.kept` kept labels need.

With `voting.kept`, the number of questions is estimated from the labels so far, and again whenever there are new ones.
The vote ends at the label with which `voting.kept` labels are kept. Labels follow the order of the questions, so the
kept ones do not depend on how often the number was estimated, or on what was interrupted.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Protocol

from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.run.stream import LabelCounter

_PRIOR_LABELS = 20  # the assumed share of kept labels counts as much as so many labels
_ROUND_MARGIN = 2.0  # standard deviations; without a margin every second round would need another one
_READ_S = 0.5  # interval at which the labels are counted


class QuestionDemand(Protocol):
    """How many accepted questions are wanted."""

    def count_wanted(self) -> int:
        """Return the number of accepted questions that are wanted now."""

    @property
    def is_settled(self) -> bool:
        """Whether this number stays as it is until synthesis ends."""


class FixedDemand:
    """A fixed number of questions. Example: FixedDemand(40).count_wanted() == 40"""

    is_settled = True

    def __init__(self, questions: int):
        self._questions = questions

    def count_wanted(self) -> int:
        """Return the number of questions."""
        return self._questions


class KeptDemand:
    """As many questions as `kept` kept labels need.

    Args:
        labels: the label stream, `labeled.jsonl`.
        kept: number of kept labels wanted (`voting.kept`).
        assumed: questions assumed to be needed, as long as there are few labels (`synthesis.accepted`).
        vote_follows: the vote labels the questions while they are written, so the number may change.
    """

    def __init__(self, labels: Path, kept: int, assumed: int, vote_follows: bool):
        self._labels, self._kept, self._assumed = LabelCounter(labels), kept, assumed
        self._follows = vote_follows
        self._next_read = 0.0

    def count_wanted(self) -> int:
        """Return the number of accepted questions that are wanted now; at least the number of labels."""
        self._read()
        margin = 0.0 if self._follows else _ROUND_MARGIN
        return estimate_questions(self._labels.labels, self._labels.kept, self._kept, self._assumed, margin)

    @property
    def is_settled(self) -> bool:
        """Whether enough labels are kept, or no vote runs that could change the number."""
        self._read()
        return not self._follows or self._labels.kept >= self._kept

    def _read(self) -> None:
        if time.monotonic() >= self._next_read:
            self._labels.read()
            self._next_read = time.monotonic() + _READ_S


def make_demand(config: Config, labels: Path, vote_follows: bool) -> QuestionDemand:
    """Return the demand of a run. Args as of KeptDemand."""
    if not config.voting.kept:
        return FixedDemand(config.synthesis.accepted)
    return KeptDemand(labels, config.voting.kept, config.synthesis.accepted, vote_follows)


def estimate_questions(labels: int, kept: int, wanted: int, assumed: int, margin: float = 0.0) -> int:
    """Return how many questions are needed in all, so that `wanted` labels are kept; at least `labels`.

    Args:
        labels: labels so far, `kept` of them kept.
        assumed: questions assumed to be needed before any was labelled; fewer than `wanted` count as `wanted`.
        margin: standard deviations of the number of kept labels that are added.

    Example: 30 of 60 labels are kept and 50 are wanted: estimate_questions(60, 30, 50, assumed=100) == 100
    """
    missing = wanted - kept
    if missing <= 0:
        return labels
    assumed = max(assumed, wanted)
    if not labels:
        return assumed
    share = (kept + _PRIOR_LABELS * wanted / assumed) / (labels + _PRIOR_LABELS)
    return labels + math.ceil((missing + margin * math.sqrt(missing * (1 - share))) / share)


def refuse_unvoted_demand(config: Config, steps: tuple[str, ...]) -> None:
    """Raise InputError if `voting.kept` is set and `steps` write questions without the vote on them."""
    if config.voting.kept and "synthesize" in steps and "vote" not in steps:
        raise InputError(
            f"voting.kept = {config.voting.kept} needs the vote to count kept labels; use `medssr run`, or add "
            "voting.kept=0 to write synthesis.accepted questions"
        )
