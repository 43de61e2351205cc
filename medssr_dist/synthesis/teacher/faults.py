"""Misbehaviour on request, so that a client can be tried against what real endpoints do."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medssr_dist.records import content_hash

# Kinds of fault before a reply is made, in the order in which their rates are added up.
KINDS = ("401", "429", "500", "hang", "reset", "truncated", "nonjson", "wrong_schema")
CALL_KINDS = ("429", "500", "reset", "truncated", "nonjson")
_FLAWS = ("one_option", "same_options", "answer_key", "answer_in_option", "prose")
_FLAWS_OF_A_SCHEMA = ("same_options", "answer_in_option")  # what structured output cannot rule out


def _option(default: Any, text: str) -> Any:
    """A field and the command-line help of its option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Faults:
    """What goes wrong. Each try is drawn anew, so a retry may succeed.

    Bad questions are drawn by prompt instead, so that a run can be repeated. In a batch, a fault of a try is a line
    of the error file.
    """

    rate_401: float = _option(0.0, "share of tries refused for the key")
    rate_429: float = _option(0.0, "share of tries refused for load")
    rate_500: float = _option(0.0, "share of tries that end in a server error")
    rate_hang: float = _option(0.0, "share of tries that get no answer")
    rate_reset: float = _option(0.0, "share of tries whose connection is reset")
    rate_truncated: float = _option(0.0, "share of tries whose answer is cut short")
    rate_nonjson: float = _option(0.0, "share of tries answered by an HTML page, status 200")
    rate_wrong_schema: float = _option(0.0, "share of tries answered by JSON that is no chat completion")
    rate_poison: float = _option(0.0, "share of prompts that are never answered: each try ends in a server error")
    rate_bad_question: float = _option(0.0, "share of prompts answered by a flawed question")
    rate_bad_call: float = _option(0.0, "share of file and batch calls that misbehave: " + ", ".join(CALL_KINDS))
    rate_created_500: float = _option(0.0, "share of batch creations that are done, but answered 500")
    rate_batch_expired: float = _option(0.0, "share of batches that expire with half of their lines unanswered")
    retry_after: float | None = _option(None, "what a 429 asks for, seconds; none by default")
    retry_after_date: bool = _option(False, "give Retry-After as an HTTP date")
    latency_s: float = _option(0.0, "seconds before a reply")
    batch_delay_s: float = _option(0.0, "seconds that a batch takes")
    limit_batch_lines: int = _option(0, "fail batches that bring more lines than this on their way; 0 = no limit")
    limit_rps: float = _option(0.0, "refuse for load above so many replies a second; 0 = no limit")
    expire_key_after: int | None = _option(None, "refuse the key after so many replies; 0 = from the start")
    die_after: int | None = _option(None, "end the process at the first try after so many replies")
    no_json_schema: bool = _option(False, "refuse response_format with status 400, as servers without it do")
    seed: int = _option(0, "seed of the faults")


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

    def call(self) -> str | None:
        """The fault of the next file or batch call, None for none."""
        return self.rng.choice(CALL_KINDS) if self.happens(self.faults.rate_bad_call) else None

    def happens(self, rate: float) -> bool:
        """Whether something of the given rate happens now."""
        return self.rng.random() < rate

    def poisoned(self, messages: list[dict]) -> bool:
        """Whether the prompt `messages` is one of those that are never answered."""
        return random.Random(content_hash(["poison", self.faults.seed, messages])).random() < self.faults.rate_poison

    def flaw(self, messages: list[dict], structured: bool = False) -> str | None:
        """The flaw to put into the question that answers `messages`, None for none."""
        rng = random.Random(content_hash([self.faults.seed, messages]))
        flaws: Sequence[str] = _FLAWS_OF_A_SCHEMA if structured else _FLAWS
        return rng.choice(flaws) if rng.random() < self.faults.rate_bad_question else None


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
