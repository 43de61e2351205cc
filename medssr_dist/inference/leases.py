"""Which samples are in flight at which engine, and what happens to them when an engine dies.

A lease is one request at one engine. A sample is identified by (key, seed); it is delivered once, however many leases
ask for it. When an engine dies, the samples that it had not delivered are queued again at once, for any engine.

How a request that kills engines is found: a request that was in flight at two engine deaths becomes a suspect. Suspects
share an engine with suspects only, and each time in a group of a quarter of the size, so that after some deaths the
culprit is alone. A request that was alone in flight at two deaths is quarantined, and no other request is. Two deaths
within a few seconds may be those of one node: the second of such a pair does not count, once per request.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from medssr_dist.inference.requests import Completion, SampleRequest

_SHRINK = 4  # a group of suspects is this many times smaller after each death
_MAX_DEATHS_ALONE = 2  # a request alone at so many deaths is quarantined
_TOGETHER_S = 10.0  # deaths within this time may have one cause that is not a request
_MAX_REFUSALS = 2  # a request late or refused so many times is quarantined


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The failures that a request has been part of.

    Example: LeaseRecord(deaths=2, max_group=3, last_death_s=41.5) was in flight at two engine deaths and may now share
    an engine with two other suspects.
    """

    deaths: int = 0  # engine deaths that it was in flight at
    deaths_alone: int = 0  # of these, with nothing else in flight
    max_group: int = 0  # most suspects on one engine, itself included; 0 = it is not a suspect
    refusals: int = 0  # times that it was late, or that an engine refused it
    last_death_s: float = -math.inf  # time of the last of these deaths
    has_ignored_death: bool = False  # a death has not been counted, as it was so close to another

    def add_death(self, alone: bool, now: float) -> LeaseRecord:
        """Return the record after an engine death at `now`. `alone`: no other request was in flight there."""
        if self.deaths_alone and not self.has_ignored_death and now - self.last_death_s < _TOGETHER_S:
            return replace(self, has_ignored_death=True)
        return replace(self, deaths=self.deaths + 1, deaths_alone=self.deaths_alone + alone, last_death_s=now)


NEW_RECORD = LeaseRecord()


class QueuedRequest(NamedTuple):
    """A request that waits for an engine, with its record."""

    request: SampleRequest
    record: LeaseRecord


@dataclass(slots=True)
class Lease:
    """A request in flight at an engine."""

    id: int
    request: SampleRequest
    engine: int  # number of the engine
    missing: set[int]  # seeds of the samples that have not arrived
    started_s: float
    record: LeaseRecord
    expected_tokens: float  # per sample
    duplicated: set[int] = field(default_factory=set)  # seeds that were requested of a second engine too

    @property
    def is_suspect(self) -> bool:
        return self.record.max_group > 0


@dataclass(frozen=True, slots=True)
class QuarantinedRequest:
    """A request that no engine will get again.

    Example: QuarantinedRequest("ab12", "in flight at 3 engine deaths, 2 times alone; the last: ActorDiedError")
    """

    key: str
    reason: str


class SeedRun(NamedTuple):
    """Consecutive seeds: `size` of them, from `first` on. Example: SeedRun(4, 3) is 4, 5, 6."""

    first: int
    size: int


def split_into_runs(seeds: list[int]) -> list[SeedRun]:
    """Split ascending seeds into runs without a gap, each of which one request can ask for.

    Example: split_into_runs([1, 2, 5]) == [SeedRun(1, 2), SeedRun(5, 1)]
    """
    starts = [i for i, seed in enumerate(seeds) if i == 0 or seed != seeds[i - 1] + 1]
    ends = [*starts[1:], len(seeds)]
    return [SeedRun(seeds[start], end - start) for start, end in zip(starts, ends, strict=False)]


class Leases:
    """All leases of a pool, and the requests that wait to be leased again. Bookkeeping only, without input or output.

    Attributes:
        waiting: requests to be leased again.
        suspects: the suspects among them.
    """

    def __init__(self) -> None:
        self.waiting: deque[QueuedRequest] = deque()
        self.suspects: deque[QueuedRequest] = deque()
        self._ids = itertools.count()
        self._by_id: dict[int, Lease] = {}
        self._by_key: dict[str, set[int]] = defaultdict(set)
        self._by_engine: dict[int, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._by_id) + len(self.waiting) + len(self.suspects)

    def get(self, lease_id: int) -> Lease | None:
        """Return the lease with this id; None once it has ended."""
        return self._by_id.get(lease_id)

    def list_of_engine(self, engine: int) -> list[Lease]:
        """Return the leases in flight at `engine`."""
        return [self._by_id[each] for each in self._by_engine[engine]]

    def add(
        self, request: SampleRequest, engine: int, now: float, record: LeaseRecord, expected_tokens: float
    ) -> Lease:
        """Lease `request` to `engine`. `expected_tokens`: of each sample."""
        seeds = set(range(request.seed, request.seed + request.n))
        lease = Lease(next(self._ids), request, engine, seeds, now, record, expected_tokens)
        self._by_id[lease.id] = lease
        self._by_key[request.key].add(lease.id)
        self._by_engine[engine].add(lease.id)
        return lease

    def deliver(self, lease_id: int, sample: Completion) -> list[Lease]:
        """Record that `sample` has arrived, and end the leases that have all their samples now.

        Returns:
            The leases that were waiting for `sample`, the one that delivered it first; [] if it has arrived before or
            is not wanted.
        """
        lease = self._by_id.get(lease_id)
        if lease is None or sample.seed not in lease.missing:
            return []
        ids = self._by_key[lease.request.key]
        leases = [lease] if len(ids) == 1 else [lease, *(self._by_id[each] for each in ids if each != lease_id)]
        waiting = [each for each in leases if sample.seed in each.missing]
        if sample.seed in lease.duplicated and len(waiting) == 1:
            self._drop_from_queue(lease.request.key, sample.seed)
        for each in waiting:
            each.missing.discard(sample.seed)
            if not each.missing:
                self._remove(each)
        return waiting

    def cancel(self, key: str) -> list[Lease]:
        """Drop all that is leased or queued for `key`; return the leases that were in flight."""
        leases = [self._by_id[each] for each in self._by_key.get(key, ())]
        for lease in leases:
            self._remove(lease)
        for queue in (self.waiting, self.suspects):
            for entry in [entry for entry in queue if entry.request.key == key]:
                queue.remove(entry)
        return leases

    def handle_death(self, engine: int, reason: str, now: float) -> list[QuarantinedRequest]:
        """Queue the requests of `engine`, which died at `now`, again; return those that are quarantined instead.

        The caller cancels the keys of the quarantined requests.
        """
        leases = self.list_of_engine(engine)
        alone = len({lease.request.key for lease in leases}) == 1
        repeated = len({lease.request.key for lease in leases if lease.record.deaths})
        quarantined: dict[str, QuarantinedRequest] = {}
        for lease in leases:
            self._remove(lease)
            before = lease.record
            record = before.add_death(alone, now)
            if record.deaths_alone >= _MAX_DEATHS_ALONE:
                text = (
                    f"in flight at {record.deaths} engine deaths, {record.deaths_alone} times alone; the last: {reason}"
                )
                quarantined[lease.request.key] = QuarantinedRequest(lease.request.key, text)
            elif before.deaths:
                self._requeue(lease, replace(record, max_group=max(1, repeated // _SHRINK)), self.suspects)
            else:
                self._requeue(lease, record, self.waiting)
        return list(quarantined.values())

    def requeue(self, lease: Lease) -> None:
        """End `lease` and queue its missing samples for an engine that has room."""
        self._remove(lease)
        self._requeue(lease, lease.record, self.waiting)

    def retry_or_quarantine(self, lease: Lease, reason: str) -> QuarantinedRequest | None:
        """End `lease`, which is late or was refused: queue it again the first time, quarantine it the second.

        The caller cancels the key of a quarantined request.
        """
        self._remove(lease)
        record = replace(lease.record, refusals=lease.record.refusals + 1)
        if record.refusals < _MAX_REFUSALS:
            self._requeue(lease, record, self.suspects if lease.is_suspect else self.waiting)
            return None
        return QuarantinedRequest(lease.request.key, f"{reason}, {record.refusals} times")

    def pop_waiting(self, engine: int) -> QueuedRequest | None:
        """Return a waiting request for `engine`; None if there is none, or the first has its key in flight there."""
        if not self.waiting:
            return None
        if any(self._by_id[each].engine == engine for each in self._by_key.get(self.waiting[0].request.key, ())):
            self.waiting.rotate(-1)
            return None
        return self.waiting.popleft()

    def pop_suspect(self, engine: int) -> QueuedRequest | None:
        """Return a suspect that may run on `engine`: with suspects only, and in a group that each of them allows."""
        leases = self.list_of_engine(engine)
        if not self.suspects or any(not lease.is_suspect for lease in leases):
            return None
        request, record = self.suspects[0]
        keys = {lease.request.key for lease in leases} | {request.key}
        allowed = min([lease.record.max_group for lease in leases] + [record.max_group])
        return self.suspects.popleft() if len(keys) <= allowed else None

    def duplicate(self, lease: Lease) -> None:
        """Request the missing samples of `lease` of another engine too, once. Suspects are never duplicated."""
        seeds = lease.missing - lease.duplicated
        if seeds and not lease.is_suspect:
            lease.duplicated |= seeds
            self.waiting += _split_request(lease.request, seeds, lease.record)

    def list_started_before(self, time_s: float) -> list[Lease]:
        """Return the leases in flight since before `time_s`."""
        return [lease for lease in self._by_id.values() if lease.started_s < time_s]

    def _drop_from_queue(self, key: str, seed: int) -> None:
        """Drop `seed` from a waiting duplicate: the sample has arrived."""
        for entry in [entry for entry in self.waiting if entry.request.key == key]:
            request, record = entry
            seeds = set(range(request.seed, request.seed + request.n))
            if seed in seeds:
                self.waiting.remove(entry)
                self.waiting += _split_request(request, seeds - {seed}, record)

    def _requeue(self, lease: Lease, record: LeaseRecord, queue: deque[QueuedRequest]) -> None:
        """Queue the missing samples of `lease`, which has ended, unless another engine has them in flight."""
        elsewhere: set[int] = set()
        for other in self._by_key.get(lease.request.key, ()):
            elsewhere |= self._by_id[other].missing
        queue += _split_request(lease.request, lease.missing - elsewhere, record)

    def _remove(self, lease: Lease) -> None:
        del self._by_id[lease.id]
        self._by_engine[lease.engine].discard(lease.id)
        others = self._by_key[lease.request.key]
        others.discard(lease.id)
        for other in others:  # its missing samples are no longer in flight at two engines
            self._by_id[other].duplicated -= lease.missing
        if not others:
            del self._by_key[lease.request.key]


def _split_request(request: SampleRequest, seeds: set[int], record: LeaseRecord) -> list[QueuedRequest]:
    """Return `request` restricted to `seeds`: one queued request for each run of seeds without a gap."""
    runs = split_into_runs(sorted(seeds))
    return [QueuedRequest(replace(request, seed=run.first, n=run.size), record) for run in runs]
