"""Sends jobs to several endpoints concurrently, and retries those that failed.

One loop sends. It wakes up when a reply arrives, a retry is due, a slot becomes free or the queue has new jobs. A
retry waits in a heap, for a random time (full jitter) or as long as Retry-After says, and holds no slot, so new jobs
are sent in the meantime. Each job goes to the endpoint with the lowest load (share of its limit in use). So each
endpoint gets as much work as it sustains, and work moves away from one that fails.

A refusal because of load never counts against a job. A failure does, unless that endpoint has replied to nothing that
was sent since the job's last failure: then the endpoint is down, and its circuit breaker handles it. If only failing
jobs are left and all circuits are open, a few new jobs are sent as probes: a reply to one of them shows that the
endpoint works and the jobs fail.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import inf
from time import monotonic
from typing import Any

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import GaveUp, NoReply, NotAnEndpoint, PromptRefused, Reply, TryFailed
from medssr_dist.synthesis.client.endpoint import EndpointWorker
from medssr_dist.synthesis.client.endpoint_state import EndpointState
from medssr_dist.synthesis.client.job import ChatJob, JobQueue
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
MAX_RETRY_AFTER_S = 600.0  # a server that asks for more has no quota left; patience_s handles that case
DRAIN_S = 5.0  # how long to wait for the requests in flight when the run cannot continue
TICK_S = 0.25
MAX_PROBES = 3  # new jobs sent to find out whether the endpoint or the job fails


@dataclass(slots=True, eq=False)
class _ActiveJob:
    """A job that is not finished: its tries in flight, and its failures, whether they count against it or not."""

    job: ChatJob
    tries: list[_Try] = field(default_factory=list)
    failures: int = 0
    failed_at: float = -inf


@dataclass(slots=True, eq=False)
class _Try:
    """One try in flight."""

    active: _ActiveJob
    worker: EndpointWorker
    sent_at: float
    task: asyncio.Task[None] = field(init=False)


class Dispatcher:
    """`await Dispatcher(synthesis, endpoints).run(queue)`.

    Attributes:
        attempts: tries sent.
        hedges: those of them that were second tries, sent because the first was slow.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        endpoints: Sequence[Endpoint],
        response_format: Mapping[str, Any] = RESPONSE_FORMAT,
    ):
        self.attempts = 0
        self.hedges = 0
        self._retry = synthesis.retry
        self._workers = [EndpointWorker(endpoint, synthesis, response_format) for endpoint in endpoints]
        self._max_waiting = max(1000, 8 * sum(endpoint.concurrency for endpoint in endpoints))
        self._wake = asyncio.Event()
        self._next: _ActiveJob | None = None  # taken from the queue or the heap, and not sent yet
        self._waiting: list[tuple[float, int, _ActiveJob]] = []  # heap of retries by the time they are due
        self._order = count()
        self._in_flight: set[_Try] = set()
        self._probes = 0  # since the last reply
        self._active_jobs = 0  # taken from the queue and not finished
        self._failing_since: float | None = None  # first failure after the last reply
        self._alarm: asyncio.TimerHandle | None = None  # wakes the loop at _alarm_at
        self._alarm_at = inf
        self._stopped = False
        self._error: BaseException | None = None

    async def run(self, queue: JobQueue) -> None:
        """Send jobs until the queue is finished and nothing is in flight or waiting, or until stopped.

        Raises:
            InputError: no endpoint can be used any more, or none replied for `retry.patience_s`.
            Exception: whatever the queue raises.
        """
        self._queue, self._wake = queue, queue.wake
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.enter_context(_frozen_heap())
            for worker in self._workers:
                await stack.enter_async_context(worker.client)
            try:
                await self._send_until_done()
            finally:
                await self._cancel(list(self._in_flight))

    def stop(self) -> None:
        """Send no new tries: those in flight finish and are delivered, waiting retries are dropped."""
        self._stopped = True
        self._wake.set()

    def read_states(self) -> list[EndpointState]:
        """Return the state of each endpoint."""
        return [worker.read_state() for worker in self._workers]

    async def _send_until_done(self) -> None:
        while True:
            self._wake.clear()
            now = monotonic()
            if self._error:
                raise self._error
            if not self._stopped:
                self._send(now)
            if reason := self._why_hopeless(now):
                await self._drain()
                raise InputError(f"{reason}. Every reply so far is kept; the same command resumes from there")
            if not self._in_flight and (self._stopped or (not self._active_jobs and self._queue.is_finished)):
                return
            self._wake_at(now + TICK_S)
            await self._wake.wait()

    # ---- sending

    def _send(self, now: float) -> None:
        """Send everything that may be sent now."""
        while (active := self._peek(now)) and (worker := self._choose_worker(active.job.tokens, now)):
            self._next = None
            self._start_try(active, worker, now)

    def _peek(self, now: float) -> _ActiveJob | None:
        """Return what to send next: a retry that is due, else a new job."""
        if self._next is None:
            if self._waiting and self._waiting[0][0] <= now:
                self._next = self._take_probe() or heapq.heappop(self._waiting)[2]
            elif len(self._waiting) < self._max_waiting and self._has_slot(now):
                self._next = self._take_new()
        if self._waiting:
            self._wake_at(self._waiting[0][0])
        return self._next

    def _take_new(self, probe: bool = False) -> _ActiveJob | None:
        job = self._queue.next_job(probe)
        if job is None:
            return None
        self._active_jobs += 1
        return _ActiveJob(job)

    def _take_probe(self) -> _ActiveJob | None:
        """Return a new job to send instead of a failing one, if no endpoint works normally."""
        if self._probes == MAX_PROBES or not all(worker.is_failing for worker in self._workers):
            return None
        self._probes += 1
        return self._take_new(probe=True)

    def _has_slot(self, now: float) -> bool:
        return any(worker.ready_at(0, now) < inf for worker in self._workers)

    def _choose_worker(self, tokens: int, now: float, avoid: EndpointWorker | None = None) -> EndpointWorker | None:
        """Return the endpoint with the lowest load that may send now; `avoid` only if there is no other."""
        best, soonest = None, inf
        for worker in self._workers:
            at = worker.ready_at(tokens, now)
            if at > now:
                soonest = min(soonest, at)
            elif best is None or (worker is avoid, worker.load) < (best is avoid, best.load):
                best = worker
        if best is None and soonest < inf:
            self._wake_at(soonest)
        return best

    def _start_try(self, active: _ActiveJob, worker: EndpointWorker, now: float) -> None:
        self._queue.record_sent(active.job)
        worker.record_sent(active.job.tokens, now)
        self.attempts += 1
        attempt = _Try(active, worker, now)
        active.tries.append(attempt)
        self._in_flight.add(attempt)
        attempt.task = self._loop.create_task(self._run_try(attempt))
        if self._retry.hedge_after_s and len(active.tries) == 1:
            self._loop.call_later(self._retry.hedge_after_s, self._hedge, attempt)

    def _hedge(self, first: _Try) -> None:
        """Send a second try in parallel with a slow first one, as soon as an endpoint has a slot for it."""
        active, now = first.active, monotonic()
        if active.tries != [first] or self._stopped:
            return
        worker = self._choose_worker(active.job.tokens, now, avoid=first.worker)
        if worker is None:
            self._loop.call_later(TICK_S, self._hedge, first)
            return
        self.hedges += 1
        self._start_try(active, worker, now)

    async def _run_try(self, attempt: _Try) -> None:
        """Run one try to its end. An error while its outcome is handled ends the run."""
        try:
            try:
                reply = await attempt.worker.client.ask(attempt.active.job.messages)
            except NoReply as failure:
                self._handle_failure(attempt, failure, monotonic())
            else:
                self._handle_reply(attempt, reply, monotonic())
        except Exception as error:
            self._error = self._error or error
        self._wake.set()

    # ---- outcomes

    def _handle_reply(self, attempt: _Try, reply: Reply, now: float) -> None:
        active = attempt.active
        self._failing_since = None
        self._probes = 0
        self._remove(attempt)
        attempt.worker.record_reply(reply, active.job.tokens, attempt.sent_at, now)
        for loser in list(active.tries):
            loser.task.cancel()
            self._remove(loser)
            loser.worker.record_cancelled()
            self._queue.record_lost(active.job)
        self._finish(active, reply)

    def _handle_failure(self, attempt: _Try, failure: NoReply, now: float) -> None:
        active, worker = attempt.active, attempt.worker
        if self._failing_since is None:
            self._failing_since = now
        self._remove(attempt)
        hold_s = worker.record_failure(failure, active.job.tokens, attempt.sent_at, now)
        self._loop.call_later(hold_s, self._release_slot, worker)
        (self._queue.record_lost if failure.may_be_billed else self._queue.record_refused)(active.job)
        gave_up = self._count_against_job(active, worker, failure)
        active.failures += 1
        active.failed_at = now
        if active.tries:  # the other try of a hedged job is still in flight
            return
        if gave_up:
            self._finish(active, gave_up)
        elif not self._stopped:
            retry_after = getattr(failure, "retry_after", None)
            due = now if worker.dead_reason else now + backoff_seconds(active.failures, retry_after)
            heapq.heappush(self._waiting, (due, next(self._order), active))

    def _count_against_job(self, active: _ActiveJob, worker: EndpointWorker, failure: NoReply) -> GaveUp | None:
        """Count a failure against the job if the job caused it. Return its outcome if that was the last try."""
        if worker.served_at == -inf:
            return None  # the endpoint is on trial, not the job
        if isinstance(failure, PromptRefused):
            return GaveUp("refused_by_api", str(failure))
        # A single job has no other job whose reply could show that the endpoint works.
        endpoint_works = worker.served_at > active.failed_at or self._active_jobs == 1
        if not (endpoint_works and isinstance(failure, TryFailed | NotAnEndpoint)):
            return None
        active.job.tries += 1
        if active.job.tries < self._retry.tries:
            return None
        return GaveUp("no_reply", f"{active.job.tries} tries failed; the last: {failure}")

    def _remove(self, attempt: _Try) -> None:
        attempt.active.tries.remove(attempt)
        self._in_flight.discard(attempt)

    def _finish(self, active: _ActiveJob, outcome: Reply | GaveUp) -> None:
        self._active_jobs -= 1
        self._queue.finish(active.job, outcome)

    def _release_slot(self, worker: EndpointWorker) -> None:
        worker.release_slot()
        self._wake.set()

    # ---- the end

    def _why_hopeless(self, now: float) -> str:
        """Return why the run cannot continue; '' while it can."""
        dead = [worker.dead_reason for worker in self._workers]
        if all(dead):
            return "no endpoint of synthesis.endpoints can be used: " + "; ".join(dead)
        if not self._active_jobs:
            self._failing_since = None
        if self._stopped or self._failing_since is None or now - self._failing_since <= self._retry.patience_s:
            return ""
        reasons = "; ".join(
            worker.dead_reason or f"{worker.read_state().name}: {worker.last_failure or 'nothing'}"
            for worker in self._workers
        )
        return f"no endpoint has replied for patience_s = {self._retry.patience_s:g}; the last answers: {reasons}"

    async def _drain(self) -> None:
        """Wait a short time for the requests in flight: their replies are paid for."""
        self._stopped = True
        tasks = [attempt.task for attempt in self._in_flight]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        if self._error:
            raise self._error

    async def _cancel(self, attempts: list[_Try]) -> None:
        for attempt in attempts:
            attempt.task.cancel()
        await asyncio.gather(*(attempt.task for attempt in attempts), return_exceptions=True)
        if not self._error:  # otherwise the queue may not be able to take reports
            for attempt in attempts:
                self._queue.record_lost(attempt.active.job)

    def _wake_at(self, at: float) -> None:
        """Wake the loop at time `at`, or earlier."""
        if at < self._alarm_at:
            if self._alarm:
                self._alarm.cancel()
            self._alarm_at = at
            self._alarm = self._loop.call_later(max(0.0, at - monotonic()), self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, inf
        self._wake.set()


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude existing objects (seeds, vocabulary) from garbage collection, which would scan them again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def backoff_seconds(failures: int, retry_after: float | None = None) -> float:
    """Return the seconds until the next try after so many failures.

    If the server asked for `retry_after` seconds: these (at most MAX_RETRY_AFTER_S) and up to a tenth more. Else full
    jitter: uniform from 0 to BACKOFF_FIRST_S * 2^(failures - 1), at most BACKOFF_LAST_S.
    """
    if retry_after is not None:
        return min(retry_after, MAX_RETRY_AFTER_S) * random.uniform(1, 1.1)
    return random.uniform(0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10)))
