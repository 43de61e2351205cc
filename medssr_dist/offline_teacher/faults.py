"""Misbehaviour on request, to test a client against the faults of real endpoints."""

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

# Kinds of fault of a try, in the order in which their rates are added up.
KINDS = ("401", "429", "500", "hang", "reset", "truncated", "nonjson", "wrong_schema")
CALL_KINDS = ("429", "500", "reset", "truncated", "nonjson")
_FLAWS = ("one_option", "same_options", "answer_key", "answer_in_option", "prose")
_FLAWS_UNDER_SCHEMA = ("same_options", "answer_in_option")  # flaws that structured output cannot prevent


def _option(default: Any, text: str) -> Any:
    """Return a field with the help text of its command-line option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Faults:
    """Which faults occur, and how often. The fault of each try is drawn separately, so a retry may succeed.

    Flawed questions are drawn by prompt instead, so that a run can be repeated. In a batch, a fault of a try becomes a
    line of the error file.

    Example: Faults(rate_429=0.3, retry_after=1.0)
    """

    rate_401: float = _option(0.0, "share of tries that refuse the key")
    rate_429: float = _option(0.0, "share of tries refused because of load")
    rate_500: float = _option(0.0, "share of tries that end in a server error")
    rate_hang: float = _option(0.0, "share of tries that get no answer")
    rate_reset: float = _option(0.0, "share of tries whose connection is reset")
    rate_truncated: float = _option(0.0, "share of tries whose answer is cut short")
    rate_nonjson: float = _option(0.0, "share of tries answered by an HTML page, status 200")
    rate_wrong_schema: float = _option(0.0, "share of tries answered by JSON that is no chat completion")
    rate_poison: float = _option(0.0, "share of prompts that are never answered: each try ends in a server error")
    rate_bad_question: float = _option(0.0, "share of prompts answered by a flawed question")
    rate_bad_call: float = _option(0.0, "share of file and batch calls that misbehave: " + ", ".join(CALL_KINDS))
    rate_created_500: float = _option(0.0, "share of batch creations that succeed, but answer 500")
    rate_batch_expired: float = _option(0.0, "share of batches that expire with half of their lines unanswered")
    retry_after: float | None = _option(None, "seconds in the Retry-After header of a 429; none by default")
    retry_after_date: bool = _option(False, "give Retry-After as an HTTP date")
    latency_s: float = _option(0.0, "seconds before a reply")
    batch_delay_s: float = _option(0.0, "seconds that a batch takes")
    limit_batch_lines: int = _option(0, "fail batches if more lines than this would be in flight; 0 = no limit")
    limit_rps: float = _option(0.0, "refuse because of load above so many replies per second; 0 = no limit")
    expire_key_after: int | None = _option(None, "refuse the key after so many replies; 0 = from the start")
    die_after: int | None = _option(None, "exit the process at the first try after so many replies")
    no_json_schema: bool = _option(False, "refuse response_format with status 400, like servers without this feature")
    seed: int = _option(0, "seed of the faults")


@dataclass
class FaultDraws:
    """Draws the faults of one server."""

    faults: Faults
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.faults.seed)

    def draw(self) -> str | None:
        """Return the fault of the next try, or None."""
        place = self.rng.random()
        for kind in KINDS:
            place -= getattr(self.faults, f"rate_{kind}")
            if place < 0:
                return kind
        return None

    def draw_call(self) -> str | None:
        """Return the fault of the next file or batch call, or None."""
        return self.rng.choice(CALL_KINDS) if self.happens(self.faults.rate_bad_call) else None

    def happens(self, rate: float) -> bool:
        """Draw whether something with the given rate happens now."""
        return self.rng.random() < rate

    def is_poisoned(self, messages: list[dict[str, Any]]) -> bool:
        """Return whether the prompt `messages` is one of those that are never answered."""
        return random.Random(hash_content(["poison", self.faults.seed, messages])).random() < self.faults.rate_poison

    def draw_flaw(self, messages: list[dict[str, Any]], structured: bool = False) -> str | None:
        """Return the flaw of the question that answers `messages`, or None."""
        rng = random.Random(hash_content([self.faults.seed, messages]))
        flaws: Sequence[str] = _FLAWS_UNDER_SCHEMA if structured else _FLAWS
        return rng.choice(flaws) if rng.random() < self.faults.rate_bad_question else None


def spoil(reply: str, flaw: str) -> str:
    """Return a sound reply with the given flaw added."""
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


_BURST_S = 0.1  # seconds of the rate limit that may be saved up


class Gate:
    """Decides the fault of each request, from the configured faults and the number of replies so far."""

    def __init__(self, faults: Faults, draws: FaultDraws, stats: Stats):
        self._faults = faults
        self._draws = draws
        self._stats = stats
        self._most = max(1.0, faults.limit_rps * _BURST_S)
        self._tokens = self._most
        self._filled = time.monotonic()

    def draw_refusal(self) -> str | None:
        """Return the immediate refusal of a request: '401', '429' or None. May exit the process."""
        if self._has_served(self._faults.die_after):
            os._exit(1)
        if self._has_served(self._faults.expire_key_after):
            return "401"
        return None if self._faults.limit_rps == 0 or self._take_token() else "429"

    def draw_fault(self, messages: list[dict[str, Any]]) -> str | None:
        """Return the fault of a chat request or batch line while it is answered, or None."""
        return "500" if self._draws.is_poisoned(messages) else self._draws.draw()

    def draw_call_fault(self) -> str | None:
        """Return the fault of a file or batch call, or None. These calls do not count towards the rate limit."""
        return "401" if self._has_served(self._faults.expire_key_after) else self._draws.draw_call()

    def _has_served(self, replies: int | None) -> bool:
        return replies is not None and self._stats.outcomes["reply"] >= replies

    def _take_token(self) -> bool:
        """Take a token from a bucket that fills at limit_rps; return whether there was one."""
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
    """Return the answer for `fault`: an HTTP status, or one of KINDS."""
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
    return error_response(status, f"fault {fault} on request", _build_retry_header(faults) if status == 429 else None)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return an error in OpenAI's format."""
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def _build_retry_header(faults: Faults) -> dict[str, str]:
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
        outcomes: tries by outcome: `reply`, or the kind of refusal or fault.
        tries: chat requests and batch lines, by the hash of their messages.
        replies: whole replies, by the same hash; a count above one is a reply that is paid twice.
        calls: file and batch calls, by call and outcome.
        in_flight, peak_in_flight: chat requests being answered, now and at most.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0

    @contextmanager
    def count_in_flight(self) -> Iterator[None]:
        """Count one chat request as in flight during the block."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def count(self, key: str, outcome: str) -> None:
        """Count one try and its outcome."""
        self.tries[key] += 1
        self.outcomes[outcome] += 1
        if outcome == "reply":
            self.replies[key] += 1


WRONG_SCHEMA = {"object": "list", "data": [], "status": "ok"}  # JSON, but no chat completion
