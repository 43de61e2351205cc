"""How much one endpoint may be asked at a time: adaptive concurrency, token buckets, circuit breaker.

Nobody knows an API's true limit, so the concurrency is found by trying, as TCP finds a path's: slow start,
additive increase, multiplicative decrease. Answers are looked at in windows of at least a round trip and 20
answers. When clearly more of them are refusals than are tolerated, the limit is cut. The next window begins
with what is sent after the cut, so a burst of refusals cuts once.

Not every refusal is about our load: some servers refuse a share of requests whatever one does, and backing
off from those only loses work. So each cut is checked on the window that follows. If goodput (replies a round
trip) fell with the limit, the cut is taken back, that share of refusals is tolerated for a while, and then
tried again. If goodput stayed, it is what the server takes, and the cut was right.

Nothing here reads a clock: `now` is what the caller's monotonic clock says, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from random import uniform

FIRST_LIMIT = 32.0
WINDOW_ANSWERS = 20
TOLERATED_SHARE = 0.05  # fewer refusals than this cost less than backing off would
MOST_TOLERATED_SHARE = 0.75  # beyond, going on at full speed would be a storm
TOLERATED_WINDOWS = 40  # how long a higher share is tolerated before it is tried again
CUT = 0.85  # a cut keeps at most this share of the limit
DEEPEST_CUT = 0.5
FIRST_ROUND_TRIP_S = 0.5  # taken for true until there is a reply
SHORTEST_HOLD_S = 0.02
SHORTEST_GAP_S = 0.002  # what timers can keep

BREAKER_FAILURES = 10
BREAKER_S = 1.0
FIRST_COOLDOWN_S = 1.0
LAST_COOLDOWN_S = 60.0


@dataclass(slots=True)
class _Window:
    """Answers since `opens`; `limit` is what the limit was then."""

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
        """Whether clearly more was refused than `share`: by more than three standard deviations."""
        expected = share * self.answers
        return self.refusals > expected + 3 * sqrt(expected * (1 - share))


@dataclass(frozen=True, slots=True)
class _Before:
    """How it went before the cut that is being checked. `goodput` is in replies a round trip."""

    limit: float
    goodput: float
    refused_share: float


class AdaptiveLimit:
    """The number of requests that may be in flight at one endpoint and model, from 1 to `most`."""

    def __init__(self, most: int):
        self.most = most
        self.level = float(min(most, FIRST_LIMIT))
        self.round_trip = FIRST_ROUND_TRIP_S  # mean of late, seconds
        self._replied = False
        self.tolerated = TOLERATED_SHARE
        self._step = max(1.0, most / 64)  # additive increase a round trip
        self._doubling = True
        self._tolerated_until = -inf
        self._cut_at = -inf
        self._before: _Before | None = None
        self._window = _Window(-inf, self.level)

    @property
    def limit(self) -> int:
        return int(self.level)

    @property
    def gap(self) -> float:
        """Seconds between two sends, well below what the limit needs: some servers refuse two at once at any rate."""
        gap = 0.6 * self.round_trip / self.level
        return gap if gap > SHORTEST_GAP_S else 0.0

    def replied(self, sent_at: float, now: float, in_flight: int) -> None:
        """A reply came. The limit grows only while it is what limits: at least half of it `in_flight`."""
        late = now - sent_at
        self.round_trip = self.round_trip * 7 / 8 + late / 8 if self._replied else late
        self._replied = True
        if self.level < self.most and 2 * in_flight >= self.level and self._may_grow():
            self.level = min(self.most, self.level + (1.0 if self._doubling else self._step / self.level))
        self._count(sent_at, now, refused=False)

    def refused(self, sent_at: float, now: float) -> float:
        """A refusal came. Returns how long to hold its slot, seconds: as long as a reply would have held it.

        Without this a refused slot would ask again at once, and refusals, which come fast, would breed refusals.
        A tolerated refusal holds its slot only briefly, as holding would do no good.
        """
        self._count(sent_at, now, refused=True)
        if now < self._tolerated_until:
            return max(self.round_trip, SHORTEST_HOLD_S) / 10
        return max(self.round_trip, SHORTEST_HOLD_S) * uniform(0.5, 1.5)  # else slots would move in step

    def restart(self) -> None:
        """Begin again from one, in slow start: the endpoint was away."""
        self.level = 1.0
        self._doubling = True
        self._before = None
        self._window = _Window(-inf, self.level)

    def _may_grow(self) -> bool:
        """Not while too much is refused, nor while a cut is being checked: that needs a limit that stands still."""
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
        """Judge the cut under check, if any, then cut if too much was refused; and open the next window."""
        if now >= self._tolerated_until:
            self.tolerated = TOLERATED_SHARE
        before, self._before = self._before, None
        if before and self._was_in_vain(before, window):
            self._take_back(before, window, now)
        elif window.exceeds(self.tolerated):
            self._cut(window, now)
        self._window = _Window(-inf, self.level)

    def _cut(self, window: _Window, now: float) -> None:
        """Cut to what was served: were the load the reason, limit x share replied is what the server takes."""
        served = 1 - window.refused_share
        if served and self.level > 1:
            self._before = _Before(self.level, served * (window.limit + self.level) / 2, window.refused_share)
        self.level = max(1.0, self.level * min(CUT, max(DEEPEST_CUT, served)))
        self._doubling = False
        self._cut_at = now
        self._tolerated_until = -inf

    def _was_in_vain(self, before: _Before, window: _Window) -> bool:
        """Whether goodput fell with the limit and refusals went on; it stays where the server is at its own limit."""
        goodput = self.level * (1 - window.refused_share)
        kept = self.level / before.limit
        fell = 0 < goodput < before.goodput * (1 + kept) / 2
        return fell and before.refused_share / 2 < window.refused_share < MOST_TOLERATED_SHARE

    def _take_back(self, before: _Before, window: _Window, now: float) -> None:
        """Go back to the limit before the cut, and search on from there: these refusals told nothing."""
        self.level = before.limit
        self._doubling = True
        self.tolerated = min(MOST_TOLERATED_SHARE, max(before.refused_share, window.refused_share))
        self._tolerated_until = now + TOLERATED_WINDOWS * max(now - window.opens, self.round_trip)


class Bucket:
    """A token bucket of about one second's worth: what an account allows a minute, spread evenly.

    A cost above the capacity passes when the bucket is full, and leaves a debt, so the rate holds all the same.
    """

    def __init__(self, per_minute: int):
        self._rate = per_minute / 60
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._filled_at = -inf

    def ready_at(self, cost: float, now: float) -> float:
        """When `cost` may pass; `now` or earlier if it may pass now."""
        self._fill(now)
        missing = min(cost, self._capacity) - self._level
        return now + missing / self._rate if missing > 1e-9 else now

    def take(self, cost: float, now: float) -> None:
        self._fill(now)
        self._level -= cost

    def give(self, cost: float) -> None:
        """Put back what an estimate took too much; a negative cost takes what it took too little."""
        self._level = min(self._capacity, self._level + cost)

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            passed = now - self._filled_at
            self._level = self._capacity if passed == inf else min(self._capacity, self._level + passed * self._rate)
            self._filled_at = now


class Breaker:
    """Circuit breaker: closed (asks), open (asks nothing for a cool-down), half-open (asks once, to see).

    It opens when at least BREAKER_FAILURES tries in a row, over at least BREAKER_S, brought no reply. One reply
    closes it; a failed probe opens it again, for twice as long.
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
        """When the next try may be made; inf while a probe is out."""
        if self.state == "closed":
            return now
        return self._until if self.state == "open" else inf

    def sending(self) -> None:
        """A try is about to be made; out of an open breaker it is the probe."""
        if self.state == "open":
            self.state = "half-open"

    def succeeded(self) -> None:
        if self._failures:
            self._close()

    def called_off(self) -> None:
        """A try was called off; if it was the probe, another may go."""
        if self.state == "half-open":
            self.state = "open"

    def failed(self, now: float, reason: str, after: float = 0.0) -> None:
        """A try brought no reply. An open breaker stays so for at least `after`, which the server asked for."""
        self._failures += 1
        if self._failures == 1:
            self._first_failure = now
        if self.state == "half-open":
            self._cooldown = min(LAST_COOLDOWN_S, 2 * self._cooldown)
        elif self.state == "open" or self._failures < BREAKER_FAILURES or now - self._first_failure < BREAKER_S:
            return
        self.state, self.reason = "open", reason
        self._until = now + max(self._cooldown, after)
