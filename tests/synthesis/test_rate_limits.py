import heapq
import random

import pytest

from medssr_dist.synthesis.client import backoff
from medssr_dist.synthesis.client.backoff import backoff_seconds
from medssr_dist.synthesis.client.rate_limits import (
    BREAKER_FAILURES,
    BREAKER_S,
    FIRST_COOLDOWN_S,
    MAX_COOLDOWN_S,
    AdaptiveLimit,
    CircuitBreaker,
    TokenBucket,
)


@pytest.fixture(autouse=True)
def seeded():
    random.seed(7)


def simulate(serve, most, seconds):
    """Use the limit fully against `serve(now) -> (replied, latency)`. Return replies/s, limit, its history."""
    limit, events, number, now, taken, replies, past = AdaptiveLimit(most), [], 0, 0.0, 0, 0, []
    sent_last = -1.0
    while now < seconds:
        while taken < limit.limit and now >= sent_last + limit.gap - 1e-9:
            replied, latency = serve(now)
            number, taken, sent_last = number + 1, taken + 1, now
            heapq.heappush(events, (now + latency, number, "reply" if replied else "refusal", now))
        if taken < limit.limit and (not events or sent_last + limit.gap < events[0][0]):
            now = sent_last + limit.gap
            continue
        now, _, kind, sent_at = heapq.heappop(events)
        if kind == "refusal":
            number += 1
            heapq.heappush(events, (now + limit.record_refusal(sent_at, now), number, "free", now))
            continue
        if kind == "reply":
            replies += 1
            limit.record_reply(sent_at, now, taken)
        taken -= 1
        past.append(limit.limit)
    return replies / seconds, limit, past


def rate_limited(per_s, latency, burst_s=1.0):
    level, filled_at = max(1.0, burst_s * per_s), 0.0
    capacity = level

    def serve(now):
        nonlocal level, filled_at
        level, filled_at = min(capacity, level + (now - filled_at) * per_s), now
        if level < 1:
            return False, 0.001
        level -= 1
        return True, latency * random.uniform(0.5, 1.5)

    return serve


def refusing(share, latency, refusal_latency):
    return lambda _: (False, refusal_latency) if random.random() < share else (True, latency * random.uniform(0.5, 1.5))


@pytest.mark.parametrize(("per_s", "latency", "most"), [(100, 0.05, 64), (200, 0.2, 512), (20, 0.05, 64), (10, 3, 64)])
def test_a_rate_limited_server_is_used_to_its_limit(per_s, latency, most):
    goodput, limit, _ = simulate(rate_limited(per_s, latency), most, seconds=max(30, 200 * latency))
    assert goodput > 0.85 * per_s
    assert limit.limit < most / 1.5


@pytest.mark.parametrize("slots", [10, 100])
def test_a_server_with_few_slots_is_used_to_its_limit(slots):
    ends = []

    def serve(now):
        while ends and ends[0] <= now:
            heapq.heappop(ends)
        if len(ends) == slots:
            return False, 0.001
        heapq.heappush(ends, now + 0.2)
        return True, 0.2

    goodput, limit, _ = simulate(serve, 512, seconds=60)
    assert goodput > 0.85 * slots / 0.2
    assert limit.limit < 2 * slots


@pytest.mark.parametrize("refusal_latency", [0.001, 0.05])
@pytest.mark.parametrize(("share", "most"), [(0.01, 64), (0.1, 64), (0.3, 64), (0.3, 256)])
def test_refusals_without_load_do_not_slow_down(share, most, refusal_latency):
    goodput, limit, _ = simulate(refusing(share, 0.05, refusal_latency), most, seconds=20)
    assert goodput > 0.85 * most / (0.05 + share / (1 - share) * refusal_latency)
    assert limit.limit > 0.6 * most


def test_a_tolerated_share_is_tried_again_from_time_to_time():
    _, _, past = simulate(refusing(0.3, 0.05, 0.05), 64, seconds=60)
    late = past[len(past) // 2 :]
    assert max(late) == 64 and min(late) < 0.86 * 64
    assert sum(late) / len(late) > 0.85 * 64


def test_refusals_of_both_kinds_at_once():
    serve = rate_limited(100, 0.1)
    goodput, limit, _ = simulate(lambda now: (False, 0.1) if random.random() < 0.3 else serve(now), 512, seconds=60)
    assert goodput > 0.85 * 100
    assert limit.limit < 256


def test_everything_refused_collapses_to_one():
    assert simulate(refusing(1.0, 0.05, 0.05), 512, seconds=20)[1].limit == 1


def test_one_burst_of_refusals_cuts_once():
    limit = AdaptiveLimit(32)
    for n in range(32):
        limit.record_reply(0.0, 0.1 + n / 1e4, 32)
    before = limit.limit
    for n in range(100):  # all sent before any was answered
        limit.record_refusal(0.2, 0.3 + n / 1e4)
    assert limit.limit == before // 2


def test_the_limit_starts_slowly_and_stays_in_its_bounds():
    limit = AdaptiveLimit(500)
    assert limit.limit == 32
    for _ in range(32):
        limit.record_reply(0.0, 0.1, 32)
    assert limit.limit == 64  # doubles each round trip
    for _ in range(10_000):
        limit.record_reply(0.0, 0.1, 500)
    assert limit.limit == 500
    assert AdaptiveLimit(1).limit == 1


def test_the_limit_does_not_grow_where_it_does_not_limit():
    limit = AdaptiveLimit(500)
    for _ in range(1000):
        limit.record_reply(0.0, 0.1, 10)
    assert limit.limit == 32


def test_a_refused_slot_is_held_as_long_as_a_reply_would_hold_it():
    limit = AdaptiveLimit(8)
    for n in range(50):
        limit.record_reply(n, n + 2.0, 8)
    assert 1.0 <= limit.record_refusal(60, 60.1) <= 3.0


def test_bucket_holds_the_rate():
    bucket, now, passed = TokenBucket(600), 0.0, 0  # 10/s
    while now < 10:
        at = bucket.ready_at(1, now)
        if at > now:
            now = at
        else:
            bucket.take(1, now)
            passed += 1
    assert 100 <= passed <= 111  # the rate, and the full bucket at the start


def test_bucket_of_less_than_one_a_second_passes_one():
    bucket = TokenBucket(6)
    assert bucket.ready_at(1, 0.0) <= 0
    bucket.take(1, 0.0)
    assert bucket.ready_at(1, 0.0) == pytest.approx(10)


def test_a_cost_above_the_capacity_leaves_a_debt():
    bucket = TokenBucket(6000)  # 100/s
    assert bucket.ready_at(1000, 0.0) <= 0
    bucket.take(1000, 0.0)
    assert bucket.ready_at(1, 0.0) == pytest.approx(9.01)
    assert bucket.ready_at(1000, 0.0) == pytest.approx(10)


def test_estimates_are_corrected():
    bucket = TokenBucket(60_000)
    bucket.take(1000, 0.0)
    bucket.give_back(1000 - 250)  # the reply used 250
    assert bucket.ready_at(750, 0.0) <= 0 < bucket.ready_at(751, 0.0)
    bucket.give_back(-1000)  # another used more than estimated
    assert bucket.ready_at(1, 0.0) == pytest.approx(0.251)
    bucket.give_back(10**6)
    assert bucket.ready_at(1000, 0.0) <= 0 < bucket.ready_at(1001, 0.0) + 1  # never above the capacity
    bucket.take(1000, 0.0)
    assert bucket.ready_at(1, 0.0) > 0


def opened():
    breaker = CircuitBreaker()
    for n in range(BREAKER_FAILURES):
        assert breaker.state == "closed"
        breaker.record_failure(n * BREAKER_S, "HTTP 500")
    return breaker, (BREAKER_FAILURES - 1) * BREAKER_S


def test_breaker_opens_after_sustained_failures_and_says_why():
    breaker, now = opened()
    assert (breaker.state, breaker.reason) == ("open", "HTTP 500")
    assert breaker.ready_at(now) == now + FIRST_COOLDOWN_S


def test_breaker_stays_closed_during_replies_and_short_bursts():
    breaker = CircuitBreaker()
    for n in range(100):
        breaker.record_failure(n, "x")
        if n % 5 == 0:
            breaker.record_reply()
    assert breaker.state == "closed"
    breaker = CircuitBreaker()
    for n in range(1000):
        breaker.record_failure(n * BREAKER_S / 1001, "x")
    assert breaker.state == "closed"


def test_half_open_breaker_sends_one_probe_and_cools_down_longer():
    breaker, now = opened()
    cooldowns = []
    for _ in range(10):
        cooldowns.append(breaker.ready_at(now) - now)
        now = breaker.ready_at(now)
        breaker.record_sent()
        assert breaker.state == "half-open" and breaker.ready_at(now) == float("inf")
        breaker.record_failure(now, "HTTP 500")
    assert cooldowns[:3] == [FIRST_COOLDOWN_S, 2 * FIRST_COOLDOWN_S, 4 * FIRST_COOLDOWN_S]
    assert cooldowns[-1] == MAX_COOLDOWN_S
    breaker.record_sent()
    breaker.record_reply()
    assert (breaker.state, breaker.reason, breaker.ready_at(now)) == ("closed", "", now)


def test_breaker_keeps_retry_after_and_replaces_cancelled_probe():
    breaker, now = opened()
    breaker.record_sent()
    breaker.record_cancelled()
    assert breaker.state == "open"
    breaker.record_sent()
    breaker.record_failure(now, "HTTP 429", retry_after=77)
    assert breaker.ready_at(now) == now + 77


def test_jitter_is_full_and_bounded(monkeypatch):
    monkeypatch.setattr(backoff, "BACKOFF_FIRST_S", 0.5)
    monkeypatch.setattr(backoff, "BACKOFF_LAST_S", 30.0)
    for failures, most in ((1, 0.5), (2, 1.0), (4, 4.0), (50, 30.0)):
        waits = [backoff_seconds(failures) for _ in range(2000)]
        assert 0 <= min(waits) < 0.05 * most and 0.95 * most < max(waits) <= most
    assert 20 <= backoff_seconds(1, 20.0) <= 22
    assert backoff_seconds(1, 86400.0) <= 660
