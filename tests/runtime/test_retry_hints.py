"""The waits that servers ask for, in all their forms."""

import time
from email.utils import formatdate

import pytest

from medssr_dist.runtime.http.error_body import describe_error
from medssr_dist.runtime.http.retry_hints import parse_retry_after, parse_seconds, read_pause, read_retry_after

DATE = {"Date": formatdate(1_000_000_000, usegmt=True)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.5", 2.5),
        ("17s", 17),
        ("350ms", 0.35),
        ("6m0s", 360),
        ("1h2m3s", 3723),
        ("1 minute and 30 seconds", 90),
        ("-1", -1),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("3 bananas", None),
        ("", None),
        (None, None),
        ("9" * 5000, 1e100),
    ],
)
def test_durations(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds) if seconds is not None else parse_seconds(text) is None


def test_retry_after_in_seconds_or_as_a_date(monkeypatch):
    assert parse_retry_after("2.5") == 2.5 and parse_retry_after("-1") == 0 and parse_retry_after("1e308") == 1e308
    for unusable in (None, "soon", "nan", "inf", "Wed, 99 Foo 9999999999 99:99:99 GMT", "sk-a-key"):
        assert parse_retry_after(unusable) is None
    assert 9 < parse_retry_after(formatdate(time.time() + 10.9, usegmt=True)) < 11
    assert parse_retry_after(formatdate(time.time() - 100, usegmt=True)) == 0
    server_now = formatdate(1_000_000, usegmt=True)
    monkeypatch.setattr(time, "time", lambda: 5e9)  # a clock that jumped
    assert parse_retry_after(formatdate(1_000_030, usegmt=True), server_now) == 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "garbage", "Retry-After": "2"}, 2),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1.2s"}, 1.2),
        ({"x-ratelimit-remaining-tokens": "40", "x-ratelimit-reset-tokens": "1.2s"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000030000"} | DATE, 30),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000030"} | DATE, 30),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30"}, 30),
        ({"RateLimit": '"default";r=0;t=30'}, 30),
        ({"RateLimit": '"hour";r=5;t=900, "minute";r=0;t=30'}, 30),
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, 30),
        ({"RateLimit": "limit=100;remaining=0;reset=30"}, 30),
        ({"RateLimit": "limit=100, remaining=7, reset=30"}, None),
        ({"Retry-After": "1000000030"} | DATE, 30),
        ({"Retry-After": "1000000030000"} | DATE, 30),
        ({"Retry-After": "2001-09-09T01:47:10Z"} | DATE, 30),
        ({"Retry-After": "2001-09-09T01:45:00Z"} | DATE, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset-after": "30"}, 30),
        ({"ratelimitbysize-remaining": "0", "ratelimitbysize-reset": "30"}, 30),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000000"} | DATE, None),
        ({"RateLimit": '"default";r=5;t=30'}, None),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2001-09-09T01:47:10Z",
            }
            | DATE,
            30,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "x" * 9}, None),
        ({}, None),
    ],
)
def test_headers(headers, seconds):
    found = read_retry_after(headers)
    assert found == pytest.approx(seconds) if seconds is not None else found is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        ({"message": "Limit reached. Please try again in 1.2s. Visit us."}, 1.2),
        ({"message": "Please try again in 6m0s"}, 360),
        ({"message": "try again in 350ms"}, 0.35),
        ({"message": "Requests exceeded. Please retry after 6 seconds."}, 6),
        ({"message": "wait for 1 minute"}, 60),
        ({"message": "no", "details": [{"@type": "RetryInfo", "retryDelay": "17s"}]}, 17),
        ({"message": "no", "metadata": {"retry_after_seconds": 4}}, 4),
        ({"message": "no", "retry_after_ms": 250}, 0.25),
        ({"error": "loading", "estimated_time": 20.5}, 20.5),
        ({"message": "no", "metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"}}}, 30),
        ({"message": '{"error": {"details": [{"retryDelay": "41s"}]}}'}, 41),
        ({"message": 'Provider - {"error": {"details": [{"retryDelay": "41s"}]}}'}, 41),
        ({"message": "Error code: 429 - {'error': {'retryDelay': '41s'}}"}, 41),
        ({"message": "retry with 3 options"}, None),
        ({"message": "You have 5 minutes of quota"}, None),
        ({"message": "no", "retry_after": True}, None),
        ({"message": "no", "retry_after": float("inf")}, None),
    ],
)
def test_hints_in_bodies(error, seconds):
    found = read_retry_after({}, describe_error({"error": error}))
    assert found == pytest.approx(seconds) if seconds is not None else found is None


def test_a_pause_while_a_limit_has_nothing_left():
    assert read_pause({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}) == 90
    assert read_pause({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1m30s"}) == 0
    assert read_pause({"x-ratelimit-remaining-requests": "junk", "x-ratelimit-reset-requests": "1m30s"}) == 0
    assert read_pause({"x-ratelimit-remaining-requests": "0"}) == 0
