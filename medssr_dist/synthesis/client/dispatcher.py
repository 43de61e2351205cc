"""Sends jobs to several endpoints concurrently, and retries those that failed.

One loop sends. It wakes up when a reply arrives, a retry is due, a slot becomes free or the queue has new jobs. A
retry waits in a heap, for a random time (full jitter) or as long as Retry-After says, and holds no slot, so new jobs
are sent in the meantime. Each job goes to the endpoint with the lowest load (share of its limit in use). So each
endpoint gets as much work as it sustains, and work moves away from one that fails.

A refusal because of load never counts against a job. A failure does, unless that endpoint has replied to nothing that
was sent since the job's last failure: then the endpoint is down, and its circuit breaker handles it. If only failing
jobs are left and all circuits are open, a few new jobs are sent as probes: a reply to one of them shows that the
endpoint works and the jobs fail.

A refusal of a request does not say whether its prompt is refused or, from now on, every request. The job is in doubt
until the endpoint replies to something that was sent after the refusal. Then a job whose prompt is the reason is given
up; any other is sent once more, and given up when it is refused again. If instead only refusals come, the endpoint is
paused, and the jobs in doubt are sent again later.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from itertools import count
from math import inf
from time import monotonic
from typing import Any

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.http.api_failure import ApiFailure
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.client.active_job import ActiveJob, ActiveTry
from medssr_dist.synthesis.client.backoff import backoff_seconds
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.chat_reply import NoReply
from medssr_dist.synthesis.client.doubts import Doubts
from medssr_dist.synthesis.client.endpoint import FIRST_ANSWERS, EndpointWorker
from medssr_dist.synthesis.client.endpoint_state import EndpointState
from medssr_dist.synthesis.client.job import JobQueue
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT

DRAIN_S = 5.0  # how long to wait for the requests in flight when the run cannot continue
TICK_S = 0.25
_OWN_SCOPES = (Scope.CONTENT, Scope.CONTEXT)  # reasons that lie in the prompt
MAX_PROBES = 3  # new jobs sent to find out whether the endpoint or the job fails


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
        self._next: ActiveJob | None = None  # taken from the queue or the heap, and not sent yet
        self._waiting: list[tuple[float, int, ActiveJob]] = []  # heap of retries by the time they are due
        self._doubts: Doubts[EndpointWorker, ActiveJob] = Doubts()
        self._order = count()
        self._in_flight: set[ActiveTry] = set()
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
        for worker in self._workers:
            if self._is_suspect(worker) and not self._sent_later(worker):  # what was awaited has been replied to
                self._ask_again(worker, now)
        while (active := self._peek(now)) and (worker := self._choose_worker(active.job.tokens, now)):
            self._next = None
            self._start_try(active, worker, now)
        if self._doubts and not self._in_flight and not self._waiting and self._next is None:
            self._settle_doubts(now)

    def _peek(self, now: float) -> ActiveJob | None:
        """Return what to send next: a retry that is due, else a new job."""
        if self._next is None:
            if self._waiting and self._waiting[0][0] <= now:
                self._next = self._take_probe() or heapq.heappop(self._waiting)[2]
            elif len(self._waiting) < self._max_waiting and self._has_slot(now):
                self._next = self._take_new()
        if self._waiting:
            self._wake_at(self._waiting[0][0])
        return self._next

    def _take_new(self, probe: bool = False) -> ActiveJob | None:
        job = self._queue.next_job(probe)
        if job is None:
            return None
        self._active_jobs += 1
        return ActiveJob(job)

    def _take_probe(self) -> ActiveJob | None:
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
            at = inf if self._is_suspect(worker) else worker.ready_at(tokens, now)
            if at > now:
                soonest = min(soonest, at)
            elif best is None or (worker is avoid, worker.load) < (best is avoid, best.load):
                best = worker
        if best is None and soonest < inf:
            self._wake_at(soonest)
        return best

    def _start_try(self, active: ActiveJob, worker: EndpointWorker, now: float) -> None:
        self._queue.record_sent(active.job)
        worker.record_sent(active.job.tokens, now)
        self.attempts += 1
        attempt = ActiveTry(active, worker, now)
        active.tries.append(attempt)
        self._in_flight.add(attempt)
        attempt.task = self._loop.create_task(self._run_try(attempt))
        if self._retry.hedge_after_s and len(active.tries) == 1:
            self._loop.call_later(self._retry.hedge_after_s, self._hedge, attempt)

    def _hedge(self, first: ActiveTry) -> None:
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

    async def _run_try(self, attempt: ActiveTry) -> None:
        """Run one try to its end. An error while its outcome is handled ends the run."""
        try:
            try:
                reply = await attempt.worker.client.ask(attempt.active.job.messages)
            except NoReply as error:
                self._handle_failure(attempt, error.failure, monotonic())
            else:
                self._handle_reply(attempt, reply, monotonic())
        except Exception as error:
            self._error = self._error or error
        self._wake.set()

    # ---- outcomes

    def _handle_reply(self, attempt: ActiveTry, reply: Reply, now: float) -> None:
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
        for refused, failure in self._doubts.resolve(attempt.worker, attempt.sent_at):
            if failure.scope in _OWN_SCOPES:
                self._finish(refused, GaveUp("refused_by_api", failure.reason))
            else:
                self._wait_for_retry(refused, attempt.worker, None, now)

    def _handle_failure(self, attempt: ActiveTry, failure: ApiFailure, now: float) -> None:
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
        elif failure.scope.is_refusal and not worker.is_failing:
            self._doubts.add(worker, active, failure, now)
        else:
            self._wait_for_retry(active, worker, failure.retry_after, now)
        if self._is_suspect(worker) and not self._sent_later(worker):
            worker.pause(failure, now)
        if worker.is_failing:
            self._ask_again(worker, now)

    def _count_against_job(self, active: ActiveJob, worker: EndpointWorker, failure: ApiFailure) -> GaveUp | None:
        """Count a failure against the job if the job caused it. Return its outcome if that was the last try."""
        refused_before = active.refused_at
        if failure.scope.is_refusal:
            active.refused_at = monotonic()
        if not worker.has_replied:
            return None  # the endpoint is on trial, not the job
        if failure.scope.is_refusal:
            is_proven = worker.served_at >= refused_before  # it has replied to what was sent after the last refusal
            is_own = failure.scope in _OWN_SCOPES and failure.is_certain
            return GaveUp("refused_by_api", failure.reason) if is_own or is_proven else None
        # A single job has no other job whose reply could show that the endpoint works.
        endpoint_works = worker.served_at > active.failed_at or self._active_jobs == 1
        counts = failure.scope in (Scope.TRY, Scope.ADDRESS) or failure.scope.is_account
        if not (endpoint_works and counts):
            return None
        active.job.tries += 1
        if active.job.tries < self._retry.tries:
            return None
        return GaveUp("no_reply", f"{active.job.tries} tries failed; the last: {failure.reason}")

    def _wait_for_retry(self, active: ActiveJob, worker: EndpointWorker, retry_after: float | None, now: float) -> None:
        if not self._stopped:
            due = now if worker.dead_reason else now + backoff_seconds(active.failures, retry_after)
            heapq.heappush(self._waiting, (due, next(self._order), active))

    # ---- refusals

    def _is_suspect(self, worker: EndpointWorker) -> bool:
        """Whether it may refuse everything: what is in flight is awaited before more is sent."""
        in_doubt = self._doubts.count(worker)
        return worker.has_replied and in_doubt >= FIRST_ANSWERS and in_doubt >= self._sent_later(worker)

    def _sent_later(self, worker: EndpointWorker) -> int:
        """Return how many tries in flight were sent after the first refusal that is in doubt."""
        mine = (each for each in self._in_flight if each.worker is worker)
        return sum(self._doubts.is_later(each.sent_at, worker) for each in mine)

    def _ask_again(self, worker: EndpointWorker, now: float) -> None:
        """Send the jobs in doubt again, later or elsewhere."""
        for refused, _ in self._doubts.drain(worker):
            self._wait_for_retry(refused, worker, None, now)

    def _settle_doubts(self, now: float) -> None:
        """Nothing is in flight that could show whether the endpoint works: send a new job, else the refused ones."""
        self._next = self._take_new(probe=True)
        if self._next is not None:
            self._wake.set()
            return
        for worker in self._workers:
            for refused, failure in self._doubts.drain(worker):
                refused.alone += worker.has_replied
                if refused.alone >= self._retry.tries:
                    self._finish(refused, GaveUp("refused_by_api", failure.reason))
                else:
                    self._wait_for_retry(refused, worker, None, now)

    def _remove(self, attempt: ActiveTry) -> None:
        attempt.active.tries.remove(attempt)
        self._in_flight.discard(attempt)

    def _finish(self, active: ActiveJob, outcome: Reply | GaveUp) -> None:
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

    async def _cancel(self, attempts: list[ActiveTry]) -> None:
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
