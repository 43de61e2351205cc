"""Misbehaviour on request, so that a client can be tried against what real endpoints do."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from aiohttp import web

from medssr_dist.data.records import hash_content

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
        return random.Random(hash_content(["poison", self.faults.seed, messages])).random() < self.faults.rate_poison

    def flaw(self, messages: list[dict], structured: bool = False) -> str | None:
        """The flaw to put into the question that answers `messages`, None for none."""
        rng = random.Random(hash_content([self.faults.seed, messages]))
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


_BURST_S = 0.1  # of the rate limit that may be saved up


class Gate:
    """Says of each request what goes wrong with it, by the faults asked for and by what was served so far."""

    def __init__(self, faults: Faults, draws: FaultDraws, stats: Stats):
        self._faults = faults
        self._draws = draws
        self._stats = stats
        self._most = max(1.0, faults.limit_rps * _BURST_S)
        self._tokens = self._most
        self._filled = time.monotonic()

    def refusal(self) -> str | None:
        """The refusal that a request meets at once: '401' or '429', None for none. May end the process."""
        if self._served(self._faults.die_after):
            os._exit(1)
        if self._served(self._faults.expire_key_after):
            return "401"
        return None if self._faults.limit_rps == 0 or self._take() else "429"

    def fault(self, messages: list[dict]) -> str | None:
        """The fault that a chat request or batch line meets while it is answered."""
        return "500" if self._draws.poisoned(messages) else self._draws.draw()

    def call_fault(self) -> str | None:
        """The fault of a file or batch call; these are no part of the rate limit."""
        return "401" if self._served(self._faults.expire_key_after) else self._draws.call()

    def _served(self, replies: int | None) -> bool:
        return replies is not None and self._stats.outcomes["reply"] >= replies

    def _take(self) -> bool:
        """Take a token from the bucket that fills at limit_rps."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._faults.limit_rps)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


_HANG_S = 3600
_HTML = "<html><body>Bad gateway, try later</body></html>"


async def misbehave(fault: str, request: web.Request, faults: Faults) -> web.StreamResponse:
    """The answer that `fault` stands for: a status, or one of faults.KINDS."""
    if fault == "hang":
        await asyncio.sleep(_HANG_S)
    if fault == "reset":
        request.transport.abort()
    if fault == "truncated":
        return await _cut_short(request)
    if fault == "nonjson":
        return web.Response(text=_HTML, content_type="text/html")
    if fault == "wrong_schema":
        return web.json_response(WRONG_SCHEMA)
    status = int(fault) if fault.isdigit() else 500
    return error_response(status, f"fault {fault} on request", _retry_after(faults) if status == 429 else None)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in OpenAI's form."""
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def _retry_after(faults: Faults) -> dict[str, str]:
    seconds = faults.retry_after
    if seconds is None:
        return {}
    if faults.retry_after_date:
        return {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}
    return {"Retry-After": f"{seconds:g}"}


async def _cut_short(request: web.Request) -> web.StreamResponse:
    """Announce a longer body than is sent, then close the connection."""
    response = web.StreamResponse(headers={"Content-Length": "4096", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps({"id": "x"})[:-1].encode())
    request.transport.close()
    return response


@dataclass
class Stats:
    """Counts since the start.

    Attributes:
        outcomes: tries by what became of them: `reply`, or the kind of refusal or fault.
        tries: chat requests and batch lines, by the hash of their messages.
        replies: whole replies made, by the same hash; more than one is one paid twice.
        calls: file and batch calls, by what became of them.
        in_flight, peak_in_flight: chat requests being answered, now and at most.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts one chat request as in flight for the length of the block."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def count(self, key: str, outcome: str) -> None:
        """Count one try and what became of it."""
        self.tries[key] += 1
        self.outcomes[outcome] += 1
        if outcome == "reply":
            self.replies[key] += 1


WRONG_SCHEMA = {"object": "list", "data": [], "status": "ok"}  # JSON, but no chat completion
