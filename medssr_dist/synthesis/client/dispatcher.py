"""Sends jobs to several endpoints at once, and tries again what failed.

One loop sends; it wakes when a reply, a retry that is due, a freed slot or the queue gives it something to
do. A retry waits in a heap (full jitter, or what Retry-After says) and holds no slot, so new work goes on
meanwhile. Each job goes to the endpoint with the smallest share of its limit taken, so work is weighted by
what each endpoint sustains, and moves away from one that fails.

A refusal by load is never held against a job. A failure is, unless that endpoint has replied to nothing that
was sent since the job's last failure: then it is the endpoint that is down, and its breaker deals with that. Where only
failing jobs are left and the breakers are open, a few new jobs are asked as probes: a reply to one tells these apart.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import Failed, GaveUp, NoReply, NotAnEndpoint, PromptRefused, Reply
from medssr_dist.synthesis.client.endpoint import EndpointState, EndpointWorker

if TYPE_CHECKING:
    from medssr_dist.synthesis.client.job import ChatJob
    from medssr_dist.synthesis.request_queue import RequestQueue

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
LONGEST_WAIT_S = 600.0  # a server that asks for more has run out of quota; patience_s is about that
FAREWELL_S = 5.0  # for what is on the wire when the run cannot go on
TICK_S = 0.25
MOST_PROBES = 3  # new jobs that are asked to see whether it is the endpoint or the job that fails


@dataclass(slots=True, eq=False)
class _Ask:
    """A job on its way: its tries on the wire, and the failures so far, its own or not."""

    job: ChatJob
    tries: list[_Try] = field(default_factory=list)
    failures: int = 0
    failed_at: float = -inf


@dataclass(slots=True, eq=False)
class _Try:
    """One try on the wire."""

    ask: _Ask
    worker: EndpointWorker
    sent_at: float
    task: asyncio.Task | None = None


class Dispatcher:
    """`await Dispatcher(synthesis, endpoints).run(queue)`.

    Attributes:
        attempts: tries sent.
        hedges: those of them that were second tries beside a slow first.
    """

    def __init__(self, synthesis: Synthesis, endpoints: Sequence[Endpoint]):
        self.attempts = 0
        self.hedges = 0
        self._retry = synthesis.retry
        self._workers = [EndpointWorker(endpoint, synthesis) for endpoint in endpoints]
        self._most_waiting = max(1000, 8 * sum(endpoint.concurrency for endpoint in endpoints))
        self._wake = asyncio.Event()
        self._next: _Ask | None = None  # taken from the queue or the heap, and not sent yet
        self._waiting: list[tuple[float, int, _Ask]] = []  # heap of retries by when they are due
        self._order = count()
        self._on_the_wire: set[_Try] = set()
        self._probes = 0  # since the last reply
        self._asks = 0  # taken from the queue and not done
        self._failing_since: float | None = None  # first failure after the last reply
        self._stopped = False
        self._error: BaseException | None = None

    async def run(self, queue: RequestQueue) -> None:
        """Ask until the queue is finished and nothing is on the wire or waiting, or until stopped.

        Raises:
            InputError: no endpoint can be used any more, or none replied for `retry.patience_s`.
            Whatever the queue raises.
        """
        self._queue, self._wake = queue, queue.wake
        self._loop = asyncio.get_running_loop()
        self._alarm, self._alarm_at = None, inf
        async with AsyncExitStack() as stack:
            stack.enter_context(_frozen_heap())
            for worker in self._workers:
                await stack.enter_async_context(worker.client)
            try:
                await self._drive()
            finally:
                await self._call_off(list(self._on_the_wire))

    def stop(self) -> None:
        """Make no new tries: those on the wire finish and are delivered, waiting retries are dropped."""
        self._stopped = True
        self._wake.set()

    def states(self) -> list[EndpointState]:
        """Where each endpoint stands."""
        return [worker.state() for worker in self._workers]

    async def _drive(self) -> None:
        while True:
            self._wake.clear()
            now = monotonic()
            if self._error:
                raise self._error
            if not self._stopped:
                self._send(now)
            if reason := self._why_hopeless(now):
                await self._take_leave()
                raise InputError(f"{reason}. Every reply so far is kept, and the same command goes on from there")
            if not self._on_the_wire and (self._stopped or (not self._asks and self._queue.finished)):
                return
            self._ring(now + TICK_S)
            await self._wake.wait()

    # ---- sending

    def _send(self, now: float) -> None:
        """Send what may be sent now."""
        while (ask := self._peek(now)) and (worker := self._choose(ask.job.tokens, now)):
            self._next = None
            self._try(ask, worker, now)

    def _peek(self, now: float) -> _Ask | None:
        """What to send next: a retry that is due, else a new job."""
        if self._next is None:
            if self._waiting and self._waiting[0][0] <= now:
                self._next = self._probe() or heapq.heappop(self._waiting)[2]
            elif len(self._waiting) < self._most_waiting and self._any_slot(now):
                self._next = self._new()
        if self._waiting:
            self._ring(self._waiting[0][0])
        return self._next

    def _new(self, probe: bool = False) -> _Ask | None:
        job = self._queue.next(probe)
        if job is None:
            return None
        self._asks += 1
        return _Ask(job)

    def _probe(self) -> _Ask | None:
        """A new job instead of a failing one, when no breaker is closed."""
        if self._probes == MOST_PROBES or not all(worker.troubled for worker in self._workers):
            return None
        self._probes += 1
        return self._new(probe=True)

    def _any_slot(self, now: float) -> bool:
        return any(worker.ready_at(0, now) < inf for worker in self._workers)

    def _choose(self, tokens: int, now: float, avoid: EndpointWorker | None = None) -> EndpointWorker | None:
        """The least loaded endpoint that may send now, `avoid` only if there is no other; None if none may."""
        best, soonest = None, inf
        for worker in self._workers:
            at = worker.ready_at(tokens, now)
            if at > now:
                soonest = min(soonest, at)
            elif best is None or (worker is avoid, worker.load) < (best is avoid, best.load):
                best = worker
        if best is None and soonest < inf:
            self._ring(soonest)
        return best

    def _try(self, ask: _Ask, worker: EndpointWorker, now: float) -> None:
        self._queue.sent(ask.job)
        worker.sending(ask.job.tokens, now)
        self.attempts += 1
        attempt = _Try(ask, worker, now)
        ask.tries.append(attempt)
        self._on_the_wire.add(attempt)
        attempt.task = self._loop.create_task(self._attempt(attempt))
        if self._retry.hedge_after_s and len(ask.tries) == 1:
            self._loop.call_later(self._retry.hedge_after_s, self._hedge, attempt)

    def _hedge(self, first: _Try) -> None:
        """Send a second try beside one that is slow, once an endpoint has a slot for it."""
        ask, now = first.ask, monotonic()
        if ask.tries != [first] or self._stopped:
            return
        worker = self._choose(ask.job.tokens, now, avoid=first.worker)
        if worker is None:
            self._loop.call_later(TICK_S, self._hedge, first)
            return
        self.hedges += 1
        self._try(ask, worker, now)

    async def _attempt(self, attempt: _Try) -> None:
        """Run one try to its end. What goes wrong in taking its outcome ends the run."""
        try:
            try:
                reply = await attempt.worker.client.ask(attempt.ask.job.messages)
            except NoReply as failure:
                self._failed(attempt, failure, monotonic())
            else:
                self._replied(attempt, reply, monotonic())
        except Exception as error:
            self._error = self._error or error
        self._wake.set()

    # ---- what came of it

    def _replied(self, attempt: _Try, reply: Reply, now: float) -> None:
        ask = attempt.ask
        self._failing_since = None
        self._probes = 0
        self._end(attempt)
        attempt.worker.replied(reply, ask.job.tokens, attempt.sent_at, now)
        for loser in list(ask.tries):
            loser.task.cancel()
            self._end(loser)
            loser.worker.cancelled()
            self._queue.lost(ask.job)
        self._done(ask, reply)

    def _failed(self, attempt: _Try, failure: NoReply, now: float) -> None:
        ask, worker = attempt.ask, attempt.worker
        if self._failing_since is None:
            self._failing_since = now
        self._end(attempt)
        hold_s = worker.failed(failure, ask.job.tokens, attempt.sent_at, now)
        self._loop.call_later(hold_s, self._release, worker)
        (self._queue.lost if failure.may_be_billed else self._queue.returned)(ask.job)
        gave_up = self._count_against(ask, worker, failure)
        ask.failures += 1
        ask.failed_at = now
        if ask.tries:  # the other try of a hedge is still out
            return
        if gave_up:
            self._done(ask, gave_up)
        elif not self._stopped:
            due = now if worker.dead else now + wait_s(ask.failures, getattr(failure, "after", None))
            heapq.heappush(self._waiting, (due, next(self._order), ask))

    def _count_against(self, ask: _Ask, worker: EndpointWorker, failure: NoReply) -> GaveUp | None:
        """Hold a failure against the job where it is the job's own; the outcome if that was the last time."""
        if worker.served_at == -inf:
            return None  # the endpoint is on trial, not the job
        if isinstance(failure, PromptRefused):
            return GaveUp("refused_by_api", str(failure))
        shown_up = worker.served_at > ask.failed_at or self._asks == 1  # alone, there is nobody to show it
        if not (shown_up and isinstance(failure, Failed | NotAnEndpoint)):
            return None
        ask.job.tries += 1
        if ask.job.tries < self._retry.tries:
            return None
        return GaveUp("no_reply", f"{ask.job.tries} tries failed; the last: {failure}")

    def _end(self, attempt: _Try) -> None:
        attempt.ask.tries.remove(attempt)
        self._on_the_wire.discard(attempt)

    def _done(self, ask: _Ask, outcome: Reply | GaveUp) -> None:
        self._asks -= 1
        self._queue.done(ask.job, outcome)

    def _release(self, worker: EndpointWorker) -> None:
        worker.release()
        self._wake.set()

    # ---- the end

    def _why_hopeless(self, now: float) -> str:
        """Why the run cannot go on; '' while it can."""
        if all(worker.dead for worker in self._workers):
            return "no endpoint of synthesis.endpoints can be used: " + "; ".join(
                worker.dead for worker in self._workers
            )
        if not self._asks:
            self._failing_since = None
        if self._stopped or self._failing_since is None or now - self._failing_since <= self._retry.patience_s:
            return ""
        reasons = "; ".join(
            worker.dead or f"{worker.state().name}: {worker.reason or 'nothing'}" for worker in self._workers
        )
        return f"no endpoint has replied for patience_s = {self._retry.patience_s:g}; the last answers: {reasons}"

    async def _take_leave(self) -> None:
        """Give what is on the wire a little time: its replies are paid for."""
        self._stopped = True
        tasks = [attempt.task for attempt in self._on_the_wire]
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_S)
        if self._error:
            raise self._error

    async def _call_off(self, attempts: list[_Try]) -> None:
        for attempt in attempts:
            attempt.task.cancel()
        await asyncio.gather(*(attempt.task for attempt in attempts), return_exceptions=True)
        if not self._error:  # the queue can still take it
            for attempt in attempts:
                self._queue.lost(attempt.ask.job)

    def _ring(self, at: float) -> None:
        """Wake the loop at `at`, or sooner."""
        if at < self._alarm_at:
            if self._alarm:
                self._alarm.cancel()
            self._alarm_at = at
            self._alarm = self._loop.call_later(max(0.0, at - monotonic()), self._rang)

    def _rang(self) -> None:
        self._alarm, self._alarm_at = None, inf
        self._wake.set()


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Spare the garbage collector what is there already (seeds, vocabulary): it walks it anew every few requests."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def wait_s(failures: int, after: float | None = None) -> float:
    """Seconds till the next try: what the server asked for and up to a tenth more, else full jitter."""
    if after is not None:
        return min(after, LONGEST_WAIT_S) * random.uniform(1, 1.1)
    return random.uniform(0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10)))
