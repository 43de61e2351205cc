"""How much may be sent to one endpoint at a time: adaptive concurrency, token buckets and a circuit breaker.

An API's true limit is not known, so the concurrency is found as TCP finds the capacity of a network path: slow start,
additive increase, multiplicative decrease. Answers are evaluated in windows of at least one round trip and 20
answers. If a window has clearly more refusals than are tolerated, the limit is cut. The next window contains only
tries that were sent after the cut, so a burst of refusals causes one cut.

Not every refusal is caused by our load: some servers refuse a share of requests in any case, and there a lower limit
only loses work. Each cut is therefore checked with the next window. If goodput (replies per round trip) fell together
with the limit, the cut is undone, and that share of refusals is tolerated for a while before a cut is tried again. If
goodput stayed the same, the server was at its own limit and the cut was right.

Nothing in this module reads a clock: `now` is always the caller's monotonic time in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from random import uniform

FIRST_LIMIT = 32.0
WINDOW_ANSWERS = 20
TOLERATED_SHARE = 0.05  # a smaller share of refusals costs less than a lower limit would
MAX_TOLERATED_SHARE = 0.75  # above this share, full speed would flood the server with requests
TOLERATED_WINDOWS = 40  # windows during which a higher share is tolerated, before a cut is tried again
CUT = 0.85  # a cut leaves at most this share of the limit
DEEPEST_CUT = 0.5  # and at least this share
FIRST_ROUND_TRIP_S = 0.5  # assumed until the first reply
MIN_HOLD_S = 0.02
MIN_GAP_S = 0.002  # timers are not more precise

BREAKER_FAILURES = 10  # failures in a row that open the circuit breaker
BREAKER_S = 1.0  # if they take at least so long
FIRST_COOLDOWN_S = 1.0
MAX_COOLDOWN_S = 60.0


@dataclass(slots=True)
class _Window:
    """The answers to tries sent since time `opens`; `limit` is the limit at that time."""

    opens: float
    limit: float
    replies: int = 0
    refusals: int = 0

    @property
    def answers(self) -> int:
        return self.replies + self.refusals

    @property
    def refused_share(self) -> float:
        return self.refusals / self.answers

    def exceeds(self, share: float) -> bool:
        """Whether clearly more than `share` of the answers are refusals: by more than three standard deviations."""
        expected = share * self.answers
        return self.refusals > expected + 3 * sqrt(expected * (1 - share))


@dataclass(frozen=True, slots=True)
class _Before:
    """The state before the cut that is being checked. `goodput` is in replies per round trip."""

    limit: float
    goodput: float
    refused_share: float


class AdaptiveLimit:
    """The number of requests that may be in flight at one endpoint, from 1 to `highest`.

    Example: AdaptiveLimit(64) starts at 32 and doubles each round trip up to 64 while nothing is refused.
    """

    def __init__(self, highest: int):
        self.highest = highest
        self.level = float(min(highest, FIRST_LIMIT))
        self.round_trip = FIRST_ROUND_TRIP_S  # moving average, seconds
        self._replied = False
        self.tolerated = TOLERATED_SHARE
        self._step = max(1.0, highest / 64)  # additive increase per round trip
        self._doubling = True
        self._tolerated_until = -inf
        self._cut_at = -inf
        self._before: _Before | None = None
        self._window = _Window(-inf, self.level)

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self.level)

    @property
    def gap(self) -> float:
        """Seconds between two sends. Some servers refuse two requests that arrive at once, even at a low rate.

        Well below round trip / limit, so that the gap does not restrict the number in flight.
        """
        gap = 0.6 * self.round_trip / self.level
        return gap if gap > MIN_GAP_S else 0.0

    def record_reply(self, sent_at: float, now: float, in_flight: int) -> None:
        """Count a reply, and raise the limit if it is in use: if at least half of it is `in_flight`."""
        latency = now - sent_at
        self.round_trip = self.round_trip * 7 / 8 + latency / 8 if self._replied else latency
        self._replied = True
        if self.level < self.highest and 2 * in_flight >= self.level and self._may_grow():
            self.level = min(self.highest, self.level + (1.0 if self._doubling else self._step / self.level))
        self._count(sent_at, now, refused=False)

    def record_refusal(self, sent_at: float, now: float) -> float:
        """Count a refusal. Return for how many seconds its slot stays taken: about as long as a reply would take it.

        Otherwise the slot would be used again at once, and since refusals come fast, each would cause more of them.
        A tolerated refusal keeps its slot only briefly, because waiting does not help there.
        """
        self._count(sent_at, now, refused=True)
        if now < self._tolerated_until:
            return max(self.round_trip, MIN_HOLD_S) / 10
        return max(self.round_trip, MIN_HOLD_S) * uniform(0.5, 1.5)  # or all slots would retry at the same moment

    def restart(self) -> None:
        """Start again from one, with slow start: the endpoint was down."""
        self.level = 1.0
        self._doubling = True
        self._before = None
        self._window = _Window(-inf, self.level)

    def _may_grow(self) -> bool:
        """Whether the limit may be raised: not if too much is refused, nor while a cut is being checked."""
        return self._before is None and not (self._window.refusals and self._window.exceeds(self.tolerated))

    def _count(self, sent_at: float, now: float, refused: bool) -> None:
        window = self._window
        if sent_at < self._cut_at:
            return
        if window.opens == -inf:
            window.opens = sent_at
        if refused:
            window.refusals += 1
        else:
            window.replies += 1
        enough = max(WINDOW_ANSWERS, self.level) if window.replies else max(4, self.level)
        if window.answers >= enough and now - window.opens >= self.round_trip:
            self._close(window, now)

    def _close(self, window: _Window, now: float) -> None:
        """Evaluate a full window: undo the cut that it checks, or cut if too much was refused; open the next window."""
        if now >= self._tolerated_until:
            self.tolerated = TOLERATED_SHARE
        before, self._before = self._before, None
        if before and self._was_useless(before, window):
            self._undo_cut(before, window, now)
        elif window.exceeds(self.tolerated):
            self._cut(window, now)
        self._window = _Window(-inf, self.level)

    def _cut(self, window: _Window, now: float) -> None:
        """Cut the limit to limit x share of replies: what the server can take, if our load caused the refusals."""
        served = 1 - window.refused_share
        if served and self.level > 1:
            self._before = _Before(self.level, served * (window.limit + self.level) / 2, window.refused_share)
        self.level = max(1.0, self.level * min(CUT, max(DEEPEST_CUT, served)))
        self._doubling = False
        self._cut_at = now
        self._tolerated_until = -inf

    def _was_useless(self, before: _Before, window: _Window) -> bool:
        """Whether the cut only lost work: goodput fell with the limit, and the refusals continued."""
        goodput = self.level * (1 - window.refused_share)
        kept = self.level / before.limit
        fell = 0 < goodput < before.goodput * (1 + kept) / 2
        return fell and before.refused_share / 2 < window.refused_share < MAX_TOLERATED_SHARE

    def _undo_cut(self, before: _Before, window: _Window, now: float) -> None:
        """Restore the limit before the cut and continue to search from it: the load did not cause these refusals."""
        self.level = before.limit
        self._doubling = True
        self.tolerated = min(MAX_TOLERATED_SHARE, max(before.refused_share, window.refused_share))
        self._tolerated_until = now + TOLERATED_WINDOWS * max(now - window.opens, self.round_trip)


class TokenBucket:
    """A token bucket: an account's limit per minute, spread evenly, with a capacity of about one second's worth.

    A cost above the capacity passes when the bucket is full and leaves a debt, so the rate is kept in any case.

    Example: TokenBucket(600) lets 10 requests per second pass.
    """

    def __init__(self, per_minute: int):
        self._rate = per_minute / 60
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._filled_at = -inf

    def ready_at(self, cost: float, now: float) -> float:
        """Return when `cost` may pass; `now` or earlier if it may pass now."""
        self._fill(now)
        missing = min(cost, self._capacity) - self._level
        return now + missing / self._rate if missing > 1e-9 else now

    def take(self, cost: float, now: float) -> None:
        """Let `cost` pass."""
        self._fill(now)
        self._level -= cost

    def give_back(self, cost: float) -> None:
        """Return what an estimate took too much; a negative cost takes what it took too little."""
        self._level = min(self._capacity, self._level + cost)

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            passed = now - self._filled_at
            self._level = self._capacity if passed == inf else min(self._capacity, self._level + passed * self._rate)
            self._filled_at = now


class CircuitBreaker:
    """Circuit breaker: closed (sends), open (sends nothing during a cool-down), half-open (sends one probe).

    It opens when at least BREAKER_FAILURES tries in a row, over at least BREAKER_S seconds, brought no reply. One
    reply closes it. A failed probe opens it again, for twice as long, at most MAX_COOLDOWN_S seconds.

    Attributes:
        state: "closed", "open" or "half-open".
        reason: the failure that opened it; '' while closed.
    """

    def __init__(self) -> None:
        self._close()

    def _close(self) -> None:
        self.state = "closed"
        self.reason = ""
        self._failures = 0
        self._first_failure = 0.0
        self._cooldown = FIRST_COOLDOWN_S
        self._until = 0.0

    def ready_at(self, now: float) -> float:
        """Return when the next try may be sent; inf while a probe is in flight."""
        if self.state == "closed":
            return now
        return self._until if self.state == "open" else inf

    def record_sent(self) -> None:
        """A try is about to be sent; if the circuit is open, it is the probe."""
        if self.state == "open":
            self.state = "half-open"

    def record_reply(self) -> None:
        """A try brought a reply: close the circuit."""
        if self._failures:
            self._close()

    def record_cancelled(self) -> None:
        """A try was cancelled; if it was the probe, another may be sent."""
        if self.state == "half-open":
            self.state = "open"

    def trip(self, now: float, reason: str) -> None:
        """Open a closed circuit whatever was counted: the endpoint is known to refuse everything."""
        if self.state == "closed":
            self._failures = max(1, self._failures)
            self.state, self.reason, self._until = "open", reason, now + self._cooldown

    def record_failure(self, now: float, reason: str, retry_after: float = 0.0) -> None:
        """A try brought no reply. An open circuit stays open for at least the server's `retry_after` seconds."""
        self._failures += 1
        if self._failures == 1:
            self._first_failure = now
        if self.state == "half-open":
            self._cooldown = min(MAX_COOLDOWN_S, 2 * self._cooldown)
        elif self.state == "open" or self._failures < BREAKER_FAILURES or now - self._first_failure < BREAKER_S:
            return
        self.state, self.reason = "open", reason
        self._until = now + max(self._cooldown, retry_after)
