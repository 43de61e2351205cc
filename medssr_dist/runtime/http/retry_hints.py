"""How long a server asks to wait: from its headers, and from the words of its answer.

In this order: `retry-after-ms`; `Retry-After` (seconds or a date); a wait in the body, as a number under a known key or
in its words ("try again in 1.5s"); the time until a limit that has nothing left is renewed, from `x-ratelimit-*`,
`anthropic-ratelimit-*`, `RateLimit-*` or `RateLimit`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from math import inf, isfinite
from typing import NamedTuple

from medssr_dist.runtime.http.error_body import ErrorBody

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT = "(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)(?![a-z])"
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNIT})")
_IN_WORDS = re.compile(
    rf"(?:try again|retry|retrying|wait|available|resets?)\b[^.;\d]{{0,40}}?((?:\d+(?:\.\d+)?\s*{_UNIT}[\s,and]*)+)",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:x-|anthropic-|x-ms-)?rate-?limit(?:bysize)?-(?:(?P<what>remaining|reset)(?:-(?P<after>[\w-]+))?"
    r"|(?P<before>[\w-]+?)-(?P<late>remaining|reset))"
)
_STRUCTURED = re.compile(r"(?:^|[;,\s])(r|remaining|t|reset)\s*=\s*(\d+(?:\.\d+)?)")
_STRUCTURED_NAMES = {"r": "r", "remaining": "r", "t": "t", "reset": "t"}


class _Limit(NamedTuple):
    """One limit of an account: what is left, and seconds until it is renewed."""

    remaining: float
    reset_s: float


def read_retry_after(headers: Mapping[str, str], said: ErrorBody | None = None) -> float | None:
    """Return for how many seconds a refusal asks to wait; None if it does not say.

    Args:
        said: the body of the refusal.
    """
    said = said or ErrorBody()
    named = {name.casefold(): value for name, value in headers.items()} | said.headers
    waits = (
        _scale(parse_seconds(named.get("retry-after-ms")), 0.001),
        parse_retry_after(named.get("retry-after"), named.get("date")),
        *(parse_seconds(str(wait)) for wait in said.waits),
        _find_wait_in_words(said.message),
        read_pause(named) or None,
    )
    return next((wait for wait in waits if wait is not None), None)


def read_pause(headers: Mapping[str, str]) -> float:
    """Return the seconds until a limit that has nothing left is renewed; 0.0 if each has something left."""
    named = {name.casefold(): value for name, value in headers.items()}
    return max((limit.reset_s for limit in _read_limits(named) if limit.remaining <= 0), default=0.0)


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None if it is absent or unusable.

    The header holds seconds or an HTTP date; some servers send a time since 1970, or an ISO 8601 date. A date is
    compared with `date`, the server's own Date header, so that a wrong or jumping clock on this machine does no harm;
    without `date`, with this machine's clock.
    """
    if value is None:
        return None
    seconds = parse_seconds(value)
    until = _timestamp(value) if seconds is None else _since_1970(seconds)
    if until is not None:
        now = _timestamp(date)
        seconds = until - (time.time() if now is None else now)
    return None if seconds is None else max(0.0, seconds)


def parse_seconds(value: str | None) -> float | None:
    """Return a duration in seconds; None if it is none. Examples: "2.5" is 2.5, "6m0s" is 360, "350ms" is 0.35."""
    if value is None:
        return None
    text = value.strip().casefold()[:100]
    try:
        seconds = float(text)
    except ValueError:
        parts = _DURATION.findall(text)
        if not parts or _DURATION.sub("", text).strip(" ,and"):
            return None
        seconds = sum(float(number) * _unit(unit) for number, unit in parts)
    return seconds if isfinite(seconds) else None


def _find_wait_in_words(message: str) -> float | None:
    found = _IN_WORDS.search(message)
    return parse_seconds(found[1].strip(" ,and")) if found else None


def _read_limits(named: Mapping[str, str]) -> Iterator[_Limit]:
    remaining: dict[str, float] = {}
    resets: dict[str, float] = {}
    for name, value in named.items():
        if not (match := _LIMIT.fullmatch(name)):
            continue
        subject = (match["after"] or match["before"] or "").removeprefix("after")
        if (match["what"] or match["late"]) == "remaining":
            left = parse_seconds(value)
            remaining[subject] = inf if left is None else left
        else:
            resets[subject] = parse_retry_after(value, named.get("date")) or 0.0
    yield from (_Limit(left, resets[subject]) for subject, left in remaining.items() if subject in resets)
    said = named.get("ratelimit", "")
    for value in said.split(",") if '"' in said else [said]:
        fields = {_STRUCTURED_NAMES[key]: float(number) for key, number in _STRUCTURED.findall(value)}
        if "r" in fields and "t" in fields:
            yield _Limit(fields["r"], fields["t"])


def _unit(name: str) -> float:
    return _UNITS["ms" if name.startswith(("ms", "milli")) else name[0]]


def _scale(value: float | None, factor: float) -> float | None:
    return None if value is None else max(0.0, value * factor)


def _since_1970(number: float) -> float | None:
    """Return a time in seconds since 1970 that is given in seconds or milliseconds; None for what is a duration."""
    if 1e9 <= number < 1e10:
        return number
    return number / 1000 if 1e12 <= number < 1e13 else None


def _timestamp(date: str | None) -> float | None:
    """Return the seconds since 1970 of an HTTP date or an ISO 8601 date; None if it is neither."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(date.strip()).timestamp() if date else None
        except (ValueError, OverflowError, IndexError, TypeError):
            continue
    return None
