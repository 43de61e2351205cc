"""Jobs in doubt: refused by an endpoint, and not known yet whether for their own sake."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, NamedTuple, TypeVar

from medssr_dist.runtime.http.api_failure import ApiFailure

_Worker = TypeVar("_Worker")
_Job = TypeVar("_Job")


class RefusedJob(NamedTuple, Generic[_Job]):
    """A job in doubt, and its refusal."""

    job: _Job
    failure: ApiFailure


class Doubts(Generic[_Worker, _Job]):
    """The jobs in doubt by the endpoint that refused them, in the order of the refusals. Times: monotonic seconds."""

    def __init__(self) -> None:
        self._refused: dict[_Worker, list[tuple[float, RefusedJob[_Job]]]] = defaultdict(list)

    def __bool__(self) -> bool:
        return any(self._refused.values())

    def add(self, worker: _Worker, job: _Job, failure: ApiFailure, now: float) -> None:
        """Put in doubt a job whose refusal has arrived now."""
        self._refused[worker].append((now, RefusedJob(job, failure)))

    def count(self, worker: _Worker) -> int:
        """Return how many jobs the endpoint has put in doubt."""
        return len(self._refused[worker])

    def is_later(self, sent_at: float, worker: _Worker) -> bool:
        """Return whether a try was sent after the first refusal of the endpoint that is in doubt."""
        refused = self._refused[worker]
        return bool(refused) and sent_at >= refused[0][0]

    def resolve(self, worker: _Worker, sent_at: float) -> list[RefusedJob[_Job]]:
        """Take out and return the jobs whose refusal arrived before `sent_at`, as a try sent then has its reply."""
        refused = self._refused[worker]
        known = [each for at, each in refused if at <= sent_at]
        self._refused[worker] = [(at, each) for at, each in refused if at > sent_at]
        return known

    def drain(self, worker: _Worker) -> list[RefusedJob[_Job]]:
        """Take out and return all jobs that the endpoint has put in doubt."""
        return [each for _, each in self._refused.pop(worker, [])]
