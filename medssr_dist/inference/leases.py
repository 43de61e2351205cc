"""Which samples are out at which engine, and what becomes of them when it dies.

A lease is one request at one engine. Samples are named by (key, seed): however many leases asked for one, it is
delivered once. What an engine held when it died is asked again at once, of any engine. A request that is there at a
second death is a suspect: it is asked in company of suspects alone, a quarter of those that were together, so that
after some deaths the culprit is alone. One that was alone at two deaths is quarantined, and no innocent with it: two
deaths close together may be those of one node, so the second of such a pair is not held against it, once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from medssr_dist.inference.requests import Completion, SampleRequest

_SHRINK = 4
_DEATHS_ALONE = 2
_TOGETHER_S = 10.0  # deaths so close together may have one cause that is no request
_OVERDUE = 2


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a request has been through."""

    deaths: int = 0  # engine deaths it was in flight at
    alone: int = 0  # of those, with nothing else in flight
    company: int = 0  # most suspects that may share an engine with it; 0 = it is no suspect
    overdue: int = 0
    died: float = -math.inf  # when the last of these deaths was, s
    excused: bool = False  # a death has not been counted, as it was so close to another

    def after_death(self, alone: bool, now: float) -> LeaseRecord:
        if self.alone and not self.excused and now - self.died < _TOGETHER_S:
            return replace(self, excused=True)
        return replace(self, deaths=self.deaths + 1, alone=self.alone + alone, died=now)


NEW_RECORD = LeaseRecord()


@dataclass(slots=True)
class Lease:
    """A request at an engine: the seeds that are still to come, and since when."""

    id: int
    request: SampleRequest
    engine: int
    missing: set[int]
    since: float
    record: LeaseRecord
    each: float  # tokens that a sample of it is expected to take
    copied: set[int] = field(default_factory=set)  # seeds asked of a second engine too

    @property
    def suspect(self) -> bool:
        return self.record.company > 0


@dataclass(frozen=True, slots=True)
class QuarantinedRequest:
    """A key that no engine will be asked about again, and why."""

    key: str
    reason: str


class Leases:
    """All leases of a pool; pure bookkeeping."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[SampleRequest, LeaseRecord]] = deque()  # to be asked again
        self.suspects: deque[tuple[SampleRequest, LeaseRecord]] = deque()
        self._ids = itertools.count()
        self._all: dict[int, Lease] = {}
        self._by_key: dict[str, set[int]] = defaultdict(set)
        self._by_engine: dict[int, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._all) + len(self.waiting) + len(self.suspects)

    def get(self, lease_id: int) -> Lease | None:
        return self._all.get(lease_id)

    def of(self, engine: int) -> list[Lease]:
        """Leases that `engine` holds."""
        return [self._all[each] for each in self._by_engine[engine]]

    def add(self, request: SampleRequest, engine: int, now: float, record: LeaseRecord, each: float) -> Lease:
        seeds = set(range(request.seed, request.seed + request.n))
        lease = Lease(next(self._ids), request, engine, seeds, now, record, each)
        self._all[lease.id] = lease
        self._by_key[request.key].add(lease.id)
        self._by_engine[engine].add(lease.id)
        return lease

    def deliver(self, lease_id: int, sample: Completion) -> list[Lease]:
        """Leases that waited for `sample`, the deliverer's first; none if it has come before or is not wanted.

        Those with nothing more to come are ended.
        """
        lease = self._all.get(lease_id)
        if lease is None or sample.seed not in lease.missing:
            return []
        others = self._by_key[lease.request.key]
        waited = [lease] if len(others) == 1 else [lease, *(self._all[each] for each in others if each != lease_id)]
        waited = [each for each in waited if sample.seed in each.missing]
        if sample.seed in lease.copied and len(waited) == 1:
            self._forget(lease.request.key, sample.seed)
        for each in waited:
            each.missing.discard(sample.seed)
            if not each.missing:
                self._drop(each)
        return waited

    def cancel(self, key: str) -> list[Lease]:
        """Ask no more for `key`; returns its leases."""
        leases = [self._all[each] for each in self._by_key.get(key, ())]
        for lease in leases:
            self._drop(lease)
        for queue in (self.waiting, self.suspects):
            for entry in [entry for entry in queue if entry[0].key == key]:
                queue.remove(entry)
        return leases

    def bury(self, engine: int, reason: str, now: float) -> list[QuarantinedRequest]:
        """`engine` died at `now`: its requests are asked again, but for those that were alone at it once too often.

        Whoever calls cancels the keys that are refused.
        """
        leases = self.of(engine)
        alone = len({lease.request.key for lease in leases}) == 1
        again = len({lease.request.key for lease in leases if lease.record.deaths})
        refused: dict[str, QuarantinedRequest] = {}
        for lease in leases:
            self._drop(lease)
            before = lease.record
            record = before.after_death(alone, now)
            if record.alone >= _DEATHS_ALONE:
                words = f"in flight at {record.deaths} engine deaths, {record.alone} times alone; the last: {reason}"
                refused[lease.request.key] = QuarantinedRequest(lease.request.key, words)
            elif before.deaths:
                self._again(lease, replace(record, company=max(1, again // _SHRINK)), self.suspects)
            else:
                self._again(lease, record, self.waiting)
        return list(refused.values())

    def take_back(self, lease: Lease) -> None:
        """Ask what `lease` is for again, of an engine that has time."""
        self._drop(lease)
        self._again(lease, lease.record, self.waiting)

    def give_back(self, lease: Lease, reason: str) -> QuarantinedRequest | None:
        """An engine did not do what `lease` asks: ask again, once. Whoever calls cancels a refused key."""
        self._drop(lease)
        record = replace(lease.record, overdue=lease.record.overdue + 1)
        if record.overdue < _OVERDUE:
            self._again(lease, record, self.suspects if lease.suspect else self.waiting)
            return None
        return QuarantinedRequest(lease.request.key, f"{reason}, {record.overdue} times")

    def next_waiting(self, engine: int) -> tuple[SampleRequest, LeaseRecord] | None:
        """What is to be asked again, unless it is a copy of what `engine` itself holds."""
        if not self.waiting:
            return None
        if any(self._all[each].engine == engine for each in self._by_key.get(self.waiting[0][0].key, ())):
            self.waiting.rotate(-1)
            return None
        return self.waiting.popleft()

    def next_suspect(self, engine: int) -> tuple[SampleRequest, LeaseRecord] | None:
        """A suspect that may join what `engine` holds: suspects alone, and no more than each of them allows."""
        held = self.of(engine)
        if not self.suspects or any(not lease.suspect for lease in held):
            return None
        request, record = self.suspects[0]
        together = {lease.request.key for lease in held} | {request.key}
        allowed = min([lease.record.company for lease in held] + [record.company])
        return self.suspects.popleft() if len(together) <= allowed else None

    def copy(self, lease: Lease) -> None:
        """Ask what `lease` is still to bring of another engine too, once. Suspects stay where they are."""
        alone = lease.missing - lease.copied
        if alone and not lease.suspect:
            lease.copied |= alone
            self.waiting += _asking(lease.request, alone, lease.record)

    def overdue(self, before: float) -> list[Lease]:
        """Leases since before that time."""
        return [lease for lease in self._all.values() if lease.since < before]

    def _forget(self, key: str, seed: int) -> None:
        """A copy that waits for an engine need not bring `seed` any more."""
        for entry in [entry for entry in self.waiting if entry[0].key == key]:
            request, record = entry
            seeds = set(range(request.seed, request.seed + request.n))
            if seed in seeds:
                self.waiting.remove(entry)
                self.waiting += _asking(request, seeds - {seed}, record)

    def _again(self, lease: Lease, record: LeaseRecord, queue: deque[tuple[SampleRequest, LeaseRecord]]) -> None:
        elsewhere = set().union(*(self._all[other].missing for other in self._by_key.get(lease.request.key, ())))
        queue += _asking(lease.request, lease.missing - elsewhere, record)

    def _drop(self, lease: Lease) -> None:
        del self._all[lease.id]
        self._by_engine[lease.engine].discard(lease.id)
        others = self._by_key[lease.request.key]
        others.discard(lease.id)
        for other in others:  # what it was to bring is no longer on its way from two engines
            self._all[other].copied -= lease.missing
        if not others:
            del self._by_key[lease.request.key]


def _asking(request: SampleRequest, seeds: set[int], record: LeaseRecord) -> list[tuple[SampleRequest, LeaseRecord]]:
    """`request` for `seeds` alone: one entry of a queue for each run of them."""
    return [(replace(request, seed=first, n=count), record) for first, count in split_into_runs(sorted(seeds))]


def split_into_runs(seeds: list[int]) -> list[tuple[int, int]]:
    """Sorted seeds as (first, count) runs without a gap: what one request can ask for."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([seed, 1])
    return [(first, count) for first, count in runs]
