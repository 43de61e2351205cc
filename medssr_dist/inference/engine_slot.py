"""A place for an engine in the pool: the engine, the samples it holds, and its measured speed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from medssr_dist.inference.engine_protocol import Engine, EngineOutput, LeasedRequest
from medssr_dist.inference.leases import Lease

_TAU_S = 10.0  # time constant of the average of an engine's speed
_KNOWN_S = 5.0  # seconds of work after which an engine's speed counts as known
_SLOW = 4  # an engine is slow when each of its samples decodes this many times slower than at the median engine
_WAITING = 32  # samples queued at the engine; as many may end in one step (all cut at one length) and be replaced
_SILENT_S = 15.0  # seconds without a token after which an engine may be hanging; engines report tokens every second


@dataclass(slots=True, eq=False)
class EngineSlot:
    """An engine and what the pool knows about it.

    Speeds are in tokens per second and sample. `median_speed` in the methods is the median over the pool's engines.
    """

    number: int
    engine: Engine
    is_live: bool = False
    is_given_up: bool = False
    has_yielded: bool = False  # has yielded a token since its last start
    has_answered: bool = False  # has finished a sample at some time
    failures: int = 0  # failed starts and deaths since the last finished sample
    samples: int = 0  # samples in flight
    suspects: int = 0  # leases in flight that may have killed an engine
    tokens: float = 0.0  # expected tokens of the samples in flight
    last_progress_s: float = 0.0  # when it last yielded a token, or got its first request after being idle
    rate: float = 0.0  # average speed
    measured_s: float = 0.0  # seconds that `rate` was measured over
    stop_reason: str = ""  # why the pool is stopping it
    run_task: asyncio.Task[None] | None = None
    collect_task: asyncio.Future[EngineOutput] | None = None
    unsent: list[LeasedRequest] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)

    def assign(self, lease: Lease, now: float) -> None:
        """Add `lease` to this engine; the next `flush` sends it."""
        if not self.samples:
            self.last_progress_s = now
        self.unsent.append(LeasedRequest(lease.id, lease.request))
        self.samples += lease.request.n
        self.suspects += lease.is_suspect
        self.tokens += lease.request.n * lease.expected_tokens

    def remove_samples(self, lease: Lease, samples: int) -> None:
        """Count `samples` samples of `lease` as no longer in flight."""
        self.samples -= samples
        self.tokens = self.tokens - samples * lease.expected_tokens if self.samples else 0.0

    def end_lease(self, lease: Lease) -> None:
        """Count `lease` as no longer in flight."""
        self.suspects -= lease.is_suspect

    def flush(self) -> None:
        """Send new and aborted leases to the engine."""
        if self.unsent or self.aborted:
            self.engine.submit(self.unsent, self.aborted)
            self.unsent, self.aborted = [], []

    def record_progress(self, tokens: int, samples: int, now: float) -> None:
        """Update the speed after the engine generated `tokens` and finished `samples` since the last call."""
        if samples:
            self.failures, self.has_answered = 0, True
        elapsed_s = now - self.last_progress_s
        if self.samples and tokens and elapsed_s > 0:
            self.measured_s += elapsed_s
            weight = 1 - math.exp(-elapsed_s / min(_TAU_S, self.measured_s))
            self.rate += weight * (tokens / elapsed_s / self.samples - self.rate)
        if tokens or samples:
            self.last_progress_s = now

    def reset(self) -> None:
        """Forget the engine's state after its death; its leases are gone too."""
        self.is_live, self.has_yielded, self.stop_reason = False, False, ""
        self.rate = self.measured_s = 0.0
        self.samples = self.suspects = 0
        self.tokens = 0.0
        self.unsent, self.aborted = [], []

    @property
    def speed(self) -> float | None:
        """The average speed; None until it is known."""
        return self.rate if self.measured_s >= _KNOWN_S else None

    def is_silent(self, now: float) -> bool:
        """Whether it has samples in flight and has not yielded a token for so long that it may be hanging."""
        return self.samples > 0 and now - self.last_progress_s > _SILENT_S

    def load(self, median_speed: float, more_tokens: float) -> float:
        """Return the expected tokens in flight plus `more_tokens`, scaled to an engine of median speed."""
        return (self.tokens + more_tokens) * median_speed / (self.speed or median_speed)

    def is_slow(self, median_speed: float) -> bool:
        """Whether it is so much slower than the others that its samples are better drawn there."""
        return (self.speed or median_speed) * _SLOW < median_speed

    def room(self, in_flight: int, median_speed: float) -> int:
        """Return how many more samples it may get; negative where it has too many.

        The limit is `in_flight` samples plus some that are queued at the engine. An engine slower than half the median
        gets proportionally less. A slow one gets one request at a time, which shows whether it has recovered.
        """
        share = 0.0 if self.is_slow(median_speed) else min(1.0, 2 * (self.speed or median_speed) / median_speed)
        queued = max(in_flight // 8, min(in_flight, _WAITING))
        return max(1, math.floor((in_flight + queued) * share)) - self.samples
