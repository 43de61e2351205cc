"""The second transport: OpenAI's Batch API. A file of requests up, a look now and then, the answers down.

Half the price for a reply within a day. Each endpoint has one batch at a time on its way; one that is listed
twice has two. What is on its way is in the ledger (see `batch_ledger`), so a run that ends for whatever reason,
a kill too, takes its batches up again when it is started again.

Requests that a batch leaves unanswered (load, server errors, the end of its window) go into the next one, up to
`retry.tries` times. Memory: the requests and the answers of one batch an endpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.api_key import scrub
from medssr_dist.synthesis.client.batch_api import CHAT_PATH, BatchApi, StopAsked
from medssr_dist.synthesis.client.batch_ledger import BatchLedger, SubmittedBatch
from medssr_dist.synthesis.client.chat_client import (
    Failed,
    GaveUp,
    KeyRefused,
    NoReply,
    NotAnEndpoint,
    PromptRefused,
    Reply,
    RequestRefused,
)
from medssr_dist.synthesis.client.endpoint import EndpointState
from medssr_dist.synthesis.prompts import request_body

if TYPE_CHECKING:
    from medssr_dist.synthesis.client.job import ChatJob
    from medssr_dist.synthesis.request_queue import RequestQueue

_ENDED = ("completed", "failed", "expired", "cancelled")
_FEWEST_REFUSED = 3  # so many refused lines, and no other: the settings are at fault, not the requests
_LOOK_S = 0.2  # between two looks at a queue that has nothing to ask for
_YIELD_EVERY = 256  # requests between two chances for the event loop
_OVER_LIMIT = "token_limit_exceeded"  # OpenAI: the account has too much in batches already
_REFUSALS = (KeyRefused, NotAnEndpoint, PromptRefused)
_encode = msgspec.json.Encoder().encode


@dataclass
class _BatchWorker:
    """One endpoint and the batch that it has on its way."""

    api: BatchApi
    state: EndpointState
    taken_up: list[tuple[SubmittedBatch, dict[int, ChatJob]]] = field(default_factory=list)
    refused_since: float | None = None  # monotonic; the account's limit on batches


class BatchRunner:
    """Asks for what a queue gives, in batches; see Dispatcher for the same over chat requests.

    Args:
        folder: gets batches.jsonl, the ledger of batches, and the files that go up.

    Raises:
        InputError: a key is refused, an endpoint refuses batches or does not answer for `retry.patience_s`, or a
            batch on its way belongs to an endpoint that is not in the config any more.
    """

    def __init__(self, synthesis: Synthesis, endpoints: Sequence[Endpoint], folder: Path):
        self.attempts = 0
        self._synthesis = synthesis
        self._paths = SynthesisPaths(Path(folder))
        self._stopped = asyncio.Event()
        self._again: deque[ChatJob] = deque()
        self._workers = [
            _BatchWorker(BatchApi(each, synthesis, self._pause), EndpointState(each)) for each in endpoints
        ]

    async def run(self, queue: RequestQueue) -> None:
        """Ask until the queue is finished and nothing is on its way, or until stopped."""
        async with AsyncExitStack() as stack:
            self._ledger = stack.enter_context(closing(BatchLedger(self._paths.batches)))
            for worker in self._workers:
                await stack.enter_async_context(worker.api)
            with suppress(StopAsked):
                await self._take_up(queue)
                await _all(self._work(worker, queue) for worker in self._workers)

    def stop(self) -> None:
        """Create no batch and wait for none: those on their way are taken up by the next run."""
        self._stopped.set()

    def states(self) -> list[EndpointState]:
        """Where each endpoint stands."""
        return [worker.state for worker in self._workers]

    async def _take_up(self, queue: RequestQueue) -> None:
        """Take the batches of an earlier run up, before anything new is asked for."""
        for batch in self._ledger:
            worker = self._worker_of(batch)
            if worker is None:
                self._ledger.closed(batch, "its server is gone")
                continue
            if batch.id is None:
                await self._find(worker, batch)
            if batch.id is not None:
                jobs = {index: job for index in batch.jobs if (job := queue.job(index)) is not None}
                worker.taken_up.append((batch, jobs))

    def _worker_of(self, batch: SubmittedBatch) -> _BatchWorker | None:
        """The worker of a batch's endpoint; None for a server on loopback, which ended with an earlier run."""
        workers = [worker for worker in self._workers if batch.is_at(worker.api.endpoint)]
        if workers:
            return min(workers, key=lambda worker: len(worker.taken_up))
        if batch.is_on_loopback:
            return None
        raise InputError(
            f"{self._paths.batches} has a batch on its way at {batch.base_url} (model {batch.model!r}), which is "
            "not among synthesis.endpoints any more; put it back until the batch has ended"
        )

    async def _find(self, worker: _BatchWorker, batch: SubmittedBatch) -> None:
        """Look for a batch that was being created at a kill, twice: its request may have been on the wire."""
        metadata = self._ledger.metadata(batch)
        found = await worker.api.find(metadata)
        if found is None:
            await self._pause(self._synthesis.poll_s)
            found = await worker.api.find(metadata)
        if found is None:
            self._ledger.closed(batch, "never created")
        else:
            self._ledger.created(batch, found)

    async def _work(self, worker: _BatchWorker, queue: RequestQueue) -> None:
        """Batch after batch at one endpoint."""
        with suppress(StopAsked):
            for batch, jobs in worker.taken_up:
                await self._see_through(worker, batch, jobs, queue)
            while jobs := await self._gather(queue):
                batch = await self._submit(worker, jobs, queue)
                await self._see_through(worker, batch, jobs, queue)

    async def _gather(self, queue: RequestQueue) -> dict[int, ChatJob]:
        """The requests of the next batch; none when the queue is finished or the run stopped."""
        while not self._stopped.is_set() and not queue.finished:
            queue.wake.clear()
            jobs: dict[int, ChatJob] = {}
            while len(jobs) < self._synthesis.batch_size:
                job = self._again.popleft() if self._again else queue.next()
                if job is None:
                    break
                jobs[job.index] = job
                if len(jobs) % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            if jobs:
                return jobs
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(queue.wake.wait(), _LOOK_S)
        return {}

    async def _submit(self, worker: _BatchWorker, jobs: dict[int, ChatJob], queue: RequestQueue) -> SubmittedBatch:
        """Put the requests up and buy the batch."""
        endpoint = worker.api.endpoint
        path = self._paths.batch_upload(self._workers.index(worker))
        try:
            with open(path, "wb") as file:
                file.writelines(self._lines(jobs, endpoint))
            file_id = await worker.api.upload(path)
        finally:
            path.unlink(missing_ok=True)
        if self._stopped.is_set():
            raise StopAsked
        batch = self._ledger.creating(endpoint, list(jobs))
        for job in jobs.values():
            queue.sent(job)
        self.attempts += len(jobs)
        self._ledger.created(batch, await worker.api.create(file_id, self._ledger.metadata(batch)))
        return batch

    def _lines(self, jobs: dict[int, ChatJob], endpoint: Endpoint) -> Iterator[bytes]:
        for job in jobs.values():
            body = request_body(job.messages, endpoint, self._synthesis)
            yield _encode({"custom_id": str(job.index), "method": "POST", "url": CHAT_PATH, "body": body}) + b"\n"

    async def _see_through(
        self, worker: _BatchWorker, batch: SubmittedBatch, jobs: dict[int, ChatJob], queue: RequestQueue
    ) -> None:
        """Wait for the batch, deliver its answers, and close it."""
        worker.state.in_flight = len(jobs)
        told = await self._wait_for(worker, batch)
        outcomes = await self._read(worker, told, jobs)
        refusal = _refusal_of_all(told, outcomes, worker.api.endpoint)
        if refusal:
            for job in jobs.values():
                queue.returned(job)
            self._again.extend(jobs.values())
        else:
            await self._deliver(worker, outcomes, queue)
        self._ledger.closed(batch, told["status"])
        worker.state.in_flight = 0
        await self._bear(worker, told, refusal)

    async def _wait_for(self, worker: _BatchWorker, batch: SubmittedBatch) -> dict:
        """The batch as the server tells it, once it has ended; of status "gone" when the server does not know it."""
        metadata = self._ledger.metadata(batch)
        while True:
            told = await worker.api.state(batch.id, metadata) or {"status": "gone"}
            counts = told.get("request_counts") or {}
            answered = counts.get("completed", 0) + counts.get("failed", 0)
            worker.state.reason = f"{batch.id} {told['status']}: {answered:,} of {len(batch.jobs):,}"
            if told["status"] in (*_ENDED, "gone"):
                return told
            await self._pause(self._synthesis.poll_s)

    async def _read(
        self, worker: _BatchWorker, told: dict, jobs: dict[int, ChatJob]
    ) -> list[tuple[ChatJob, Reply | NoReply]]:
        """What became of each request, by the error and output files."""
        outcomes, waiting = [], {str(index): job for index, job in jobs.items()}
        for name in ("error_file_id", "output_file_id"):
            for line in await worker.api.read(told[name]) if told.get(name) else ():
                job = waiting.pop(line.get("custom_id"), None)
                if job is not None:
                    outcomes.append((job, worker.api.outcome(line)))
        silence = Failed(f"no answer in a batch that is {told['status']}", told["status"] in ("completed", "gone"))
        return outcomes + [(job, silence) for job in waiting.values()]

    async def _deliver(
        self, worker: _BatchWorker, outcomes: list[tuple[ChatJob, Reply | NoReply]], queue: RequestQueue
    ) -> None:
        """Each outcome to the queue; what may be tried again to the next batch."""
        for number, (job, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Reply):
                worker.state.replies += 1
                queue.done(job, outcome)
            else:
                worker.state.refusals += isinstance(outcome, RequestRefused)
                worker.state.failures += not isinstance(outcome, RequestRefused)
                self._bring_back(job, outcome, queue)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _bring_back(self, job: ChatJob, failure: NoReply, queue: RequestQueue) -> None:
        """A request that has no reply: billed or not, given up or to be tried again."""
        (queue.lost if failure.may_be_billed else queue.returned)(job)
        job.tries += 1
        if isinstance(failure, PromptRefused):
            queue.done(job, GaveUp("refused_by_api", str(failure)))
        elif job.tries >= self._synthesis.retry.tries:
            queue.done(job, GaveUp("no_reply", str(failure)))
        else:
            self._again.append(job)

    async def _bear(self, worker: _BatchWorker, told: dict, refusal: InputError | None) -> None:
        """After a batch was refused as a whole: wait where that may pass, for a while; raise where it may not."""
        if refusal is None:
            worker.refused_since = None
            return
        now = time.monotonic()
        worker.refused_since = worker.refused_since or now
        over_limit = any(error.get("code") == _OVER_LIMIT for error in _errors(told))
        if not over_limit or now - worker.refused_since > self._synthesis.retry.patience_s:
            raise refusal
        await self._pause(self._synthesis.poll_s)

    async def _pause(self, seconds: float) -> None:
        """Wait. Raises StopAsked when the run is, or is being, stopped."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
            raise StopAsked


def _errors(told: dict) -> list[dict]:
    return (told.get("errors") or {}).get("data") or []


def _refusal_of_all(
    told: dict, outcomes: list[tuple[ChatJob, Reply | NoReply]], endpoint: Endpoint
) -> InputError | None:
    """Why nothing of the batch was tried: it failed as a whole, or every line was refused for the same settings."""
    if told["status"] == "failed":
        said = "; ".join(str(error.get("message")) for error in _errors(told)[:1]) or "no reason given"
        return InputError(
            f"endpoint {endpoint.base_url} failed a batch ({scrub(said, endpoint.api_key)[:300]}); check the model and "
            "json_schema of the endpoint, or set a smaller synthesis.batch_size"
        )
    refusals = [outcome for _, outcome in outcomes if isinstance(outcome, _REFUSALS)]
    if len(refusals) < max(_FEWEST_REFUSED, len(outcomes)):
        return None
    return InputError(
        f"endpoint {endpoint.base_url} refuses every request of a batch ({refusals[0]}); check its model, api_key and "
        "json_schema"
    )


async def _all(coroutines: Iterable[Coroutine]) -> None:
    """Run all; the first error cancels the others and is raised."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
