"""The timeline of a simulated cluster: what its engines do, sampled about every second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from medssr_dist.bench.voting.simulation import SimulatedEngine
from medssr_dist.data.records import Vote
from medssr_dist.voting.ledger import VoteLedger


@dataclass(frozen=True)
class TimelineFigures:
    """The engines over a run.

    >>> TimelineFigures(0.975, busy=0.985, died=38, wedged=11, stragglers=2, tail_s=88.0)

    Attributes:
        steady_utilisation: None if the run is too short for it.
        busy: tokens that were generated, useful or not / tokens of full batches.
        died, wedged: failures by kind; a wedged engine hangs.
        tail_s: seconds from the last question's begin to the end.
    """

    steady_utilisation: float | None
    busy: float
    died: int
    wedged: int
    stragglers: int
    tail_s: float


@dataclass(frozen=True)
class TimelineRows:
    """The timeline of a run, for its plot.

    >>> TimelineRows([0.0, 1.1], [0, 5012], [0, 6100], [(1.0, 3, "died")], [b"\\x00\\x00", b"\\xff\\x80"])

    Attributes:
        time_s: simulated seconds of the samples.
        tokens: of the votes in the ledger at these times. capacity: tokens of full batches until then.
        failures: (time, engine, "died" or "wedged").
        occupancy: at these times, the share of its batch that each engine decodes, in 1/255. Not in the result file:
            it has thousands of numbers a second.
    """

    time_s: list[float]
    tokens: list[int]
    capacity: list[int]
    failures: list[tuple[float, int, str]]
    occupancy: list[bytes]


class MeteredLedger(VoteLedger):
    """The ledger, which also counts the tokens of its votes."""

    tokens = 0

    def add_votes(self, position: int, votes: list[Vote]) -> int:
        self.tokens += sum(vote.tokens for vote in votes)
        return super().add_votes(position, votes)


class Timeline:
    """The state of the engines, sampled about every `every_s` simulated seconds.

    Args:
        all_begun: returns whether there is no question left to begin.
    """

    def __init__(
        self,
        now: Callable[[], float],
        engines: list[SimulatedEngine],
        ledger: MeteredLedger,
        all_begun: Callable[[], bool],
        every_s: float = 1.0,
    ):
        self._now, self._engines, self._ledger, self._all_begun = now, engines, ledger, all_begun
        self._every_s, self._next = every_s, 0.0
        self._times: list[float] = []
        self._tokens: list[int] = []
        self._capacity: list[float] = []
        self._occupancy: list[bytes] = []  # an engine's share of its batch, in 1/255
        self._begun = 0  # samples before the last question was begun

    def sample(self) -> bool:
        """Take a sample if it is time. Returns False: `collect_votes` calls this to ask whether to stop."""
        if self._now() >= self._next:
            self._next = self._now() + self._every_s
            self._record()
        return False

    def end(self) -> None:
        """Take the last sample."""
        self._record()

    @property
    def seconds(self) -> float:
        """Simulated seconds up to the last sample."""
        return self._times[-1]

    @property
    def capacity(self) -> float:
        """Tokens that full batches would have generated up to the last sample."""
        return self._capacity[-1]

    def summarise(self) -> TimelineFigures:
        failures = Counter(kind for engine in self._engines for _, kind in engine.failures)
        return TimelineFigures(
            steady_utilisation=self._steady(),
            busy=round(sum(engine.generated for engine in self._engines) / self.capacity, 4),
            died=failures["died"],
            wedged=failures["wedged"],
            stragglers=sum(engine.slowness > 1 for engine in self._engines),
            tail_s=round(self.seconds - self._times[min(self._begun, len(self._times) - 1)], 1),
        )

    def list_rows(self) -> TimelineRows:
        return TimelineRows(
            time_s=[round(time, 1) for time in self._times],
            tokens=self._tokens,
            capacity=[round(capacity) for capacity in self._capacity],
            failures=[
                (round(time, 1), number, kind)
                for number, engine in enumerate(self._engines)
                for time, kind in engine.failures
            ],
            occupancy=self._occupancy,
        )

    def _steady(self) -> float | None:
        first, last = len(self._times) // 10, self._begun - 1
        if last <= first:
            return None
        capacity = self._capacity[last] - self._capacity[first]
        return round((self._tokens[last] - self._tokens[first]) / capacity, 4) if capacity else None

    def _record(self) -> None:
        now = self._now()
        self._begun += not self._all_begun()
        self._times.append(now)
        self._tokens.append(self._ledger.tokens)
        self._capacity.append(sum(engine.capacity(now) for engine in self._engines))
        self._occupancy.append(bytes(255 * engine.running // engine.speed.batch for engine in self._engines))
