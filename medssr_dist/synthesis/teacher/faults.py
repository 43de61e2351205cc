"""Misbehaviour on request, so that a client can be tried against what real endpoints do."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from medssr_dist.records import content_hash

# Kinds of fault before a reply is made, in the order in which their rates are added up.
KINDS = ("401", "429", "500", "hang", "reset", "truncated", "nonjson")
_FLAWS = ("one_option", "same_options", "answer_key", "answer_in_option", "prose")


@dataclass(frozen=True)
class Faults:
    """Rates are probabilities a try; each try is drawn anew, so a retry may succeed.

    `retry_after` is what a 429 asks for in seconds (None: no such header), as an HTTP date if
    `retry_after_date`. Bad questions are drawn by prompt instead, so that a run can be repeated.
    """

    rate_401: float = 0.0
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_hang: float = 0.0
    rate_reset: float = 0.0
    rate_truncated: float = 0.0
    rate_nonjson: float = 0.0
    rate_bad_question: float = 0.0
    retry_after: float | None = None
    retry_after_date: bool = False
    latency_s: float = 0.0
    seed: int = 0


@dataclass
class FaultDraws:
    """The stream of faults of one server."""

    faults: Faults
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.faults.seed)

    def draw(self) -> str | None:
        """The fault of the next try, None for none."""
        place = self.rng.random()
        for kind in KINDS:
            place -= getattr(self.faults, f"rate_{kind}")
            if place < 0:
                return kind
        return None

    def flaw(self, messages: list[dict]) -> str | None:
        """The flaw to put into the question that answers `messages`, None for none."""
        rng = random.Random(content_hash([self.faults.seed, messages]))
        return rng.choice(_FLAWS) if rng.random() < self.faults.rate_bad_question else None


def spoil(reply: str, flaw: str) -> str:
    """A reply with the given flaw, from a sound one."""
    question = json.loads(reply)
    options = question["options"]
    if flaw == "one_option":
        question["options"] = {"A": options["A"]}
    elif flaw == "same_options":
        question["options"] = {**options, "B": options["A"].upper()}
    elif flaw == "answer_key":
        question["answer"] = "A"
    elif flaw == "answer_in_option":
        question["options"] = {**options, "A": options["A"] + " (correct)"}
    elif flaw == "prose":
        return "I would rather tell you about this disease in general: " + question["question"]
    return json.dumps(question, ensure_ascii=False)
