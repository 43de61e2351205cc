"""A place for an engine in the pool: the engine, how much it holds, and how fast it is."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Protocol

from medssr_dist.inference.leases import Lease
from medssr_dist.inference.requests import Completion, SampleRequest

_TAU_S = 10.0  # over which an engine's speed is averaged
_KNOWN_S = 5.0  # of work after which its speed is known
_SLOW = 4  # times slower a sample than the others
_WAITING = 32  # samples that may end at once, as all do that are cut at the same length, and are replaced at once
_QUIET_S = 15.0  # without a token; engines tell of theirs every second


@dataclass(slots=True)
class EngineOutput:
    """What an engine hands over: (lease id, one sample), leases it refused and why, tokens since the last time."""

    samples: list[tuple[int, Completion]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0


class Engine(Protocol):
    """The far end of a pool's work: a vLLM engine on Ray, a running server, or a simulated one."""

    name: str

    async def start(self) -> None:
        """Come up, ready for work; also again after `stop`. Raises what keeps it from it; InputError ends the run."""

    def submit(self, requests: list[tuple[int, SampleRequest]], aborted: list[int]) -> None:
        """New leases and ended ones, at once; what goes wrong with them is told by `collect`."""

    async def collect(self) -> EngineOutput:
        """Wait for samples, or for tokens of samples to come. Raises when the engine is dead."""

    async def stop(self) -> None:
        """End it at once, also when it does not answer."""


@dataclass(slots=True, eq=False)
class EngineSlot:
    """An engine and what the pool knows of it."""

    number: int
    engine: Engine
    live: bool = False
    over: bool = False  # given up
    spoke: bool = False  # it has yielded a token since its start
    proven: bool = False  # it has answered
    failures: int = 0  # starts and deaths in a row without a sample between them
    samples: int = 0  # outstanding
    suspects: int = 0  # leases among them that may have killed an engine
    tokens: float = 0.0  # outstanding, as estimated
    moved: float = 0.0  # when it last yielded a token, or got work after having none
    rate: float = 0.0  # tokens a second and sample
    worked: float = 0.0  # seconds that `rate` was measured over
    verdict: str = ""  # why it is being ended
    serving: asyncio.Task | None = None
    taking: asyncio.Future | None = None
    fresh: list[tuple[int, SampleRequest]] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)

    def lease(self, lease: Lease, now: float) -> None:
        """Take on `lease`; it goes out with the next `send`."""
        if not self.samples:
            self.moved = now
        self.fresh.append((lease.id, lease.request))
        self.samples += lease.request.n
        self.suspects += lease.suspect
        self.tokens += lease.request.n * lease.each

    def lighten(self, lease: Lease, samples: int) -> None:
        """`samples` fewer of `lease` are outstanding."""
        self.samples -= samples
        self.tokens = self.tokens - samples * lease.each if self.samples else 0.0

    def ended(self, lease: Lease) -> None:
        """Nothing more of `lease` is outstanding."""
        self.suspects -= lease.suspect

    def send(self) -> None:
        if self.fresh or self.aborted:
            self.engine.submit(self.fresh, self.aborted)
            self.fresh, self.aborted = [], []

    def heard(self, tokens: int, samples: int, now: float) -> None:
        """It yielded `tokens` and finished `samples` since it was last heard."""
        if samples:
            self.failures, self.proven = 0, True
        passed = now - self.moved
        if self.samples and tokens and passed > 0:
            self.worked += passed
            weight = 1 - math.exp(-passed / min(_TAU_S, self.worked))
            self.rate += weight * (tokens / passed / self.samples - self.rate)
        if tokens or samples:
            self.moved = now

    def empty(self) -> None:
        """Its engine is gone, and what it held with it."""
        self.live, self.spoke, self.verdict = False, False, ""
        self.rate = self.worked = 0.0
        self.samples = self.suspects = 0
        self.tokens = 0.0
        self.fresh, self.aborted = [], []

    @property
    def speed(self) -> float | None:
        """Tokens a second and sample, once it is known."""
        return self.rate if self.worked >= _KNOWN_S else None

    def quiet(self, now: float) -> bool:
        """Whether it holds samples and has not yielded a token for so long that it may be wedged."""
        return self.samples > 0 and now - self.moved > _QUIET_S

    def load(self, usual: float, more: float) -> float:
        """Tokens outstanding and `more`, in those of an engine of usual speed."""
        return (self.tokens + more) * usual / (self.speed or usual)

    def slow(self, usual: float) -> bool:
        """Whether it is so much slower than the others that what it holds is better asked of them."""
        return (self.speed or usual) * _SLOW < usual

    def room(self, in_flight: int, usual: float) -> int:
        """Samples it may still be given; less than none where it has too many.

        `in_flight`, and some that wait at the engine for a free seat; less for one slower than half the others; a slow
        one gets one request at a time, which shows whether it has recovered.
        """
        share = 0.0 if self.slow(usual) else min(1.0, 2 * (self.speed or usual) / usual)
        waiting = max(in_flight // 8, min(in_flight, _WAITING))
        return max(1, math.floor((in_flight + waiting) * share)) - self.samples
