"""The second transport: OpenAI's Batch API. Upload a file of requests, poll, download the answers.

It costs half the price; replies come within a day. Each endpoint has one batch in flight; an endpoint that is listed
twice has two. The ledger of batches (see `batch_ledger`) holds what is in flight, so a run that ends for any reason,
even by a kill, resumes its batches when it is started again.

Each reply is delivered as it is read. Requests that a batch leaves unanswered (load, server errors, the end of its
window) go into the next batch; failures count up to `retry.tries`, load does not. Memory: the requests and failures of
one batch per endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.data.private_files import replace_private
from medssr_dist.errors import InputError
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.http.api_failure import ApiFailure, quote_words
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.client.batch_api import CHAT_PATH, GONE, BatchAnswer, BatchApi, BatchState, StopRequested
from medssr_dist.synthesis.client.batch_ledger import BatchLedger, SubmittedBatch
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.chat_reply import try_failed
from medssr_dist.synthesis.client.endpoint_state import EndpointState
from medssr_dist.synthesis.client.job import ChatJob, JobQueue
from medssr_dist.synthesis.client.request_body import LimitName

_MIN_REFUSED = 3  # if so many lines are refused, and no line is not, the settings are wrong and not the requests
_QUEUE_POLL_S = 0.2  # seconds between two checks of a queue that has no job now
_YIELD_EVERY = 256  # jobs after which the event loop may do other work
_OVER_LIMIT = "token_limit_exceeded"  # OpenAI's code: the account has too many tokens in batches already
_encode = msgspec.json.Encoder().encode

logger = logging.getLogger(__name__)


@dataclass
class _BatchWorker:
    """One endpoint and the batch that it has in flight."""

    api: BatchApi
    state: EndpointState
    resumed: list[tuple[SubmittedBatch, dict[int, ChatJob]]] = field(default_factory=list)
    limit_name: LimitName = "max_tokens"  # in the requests of its batch
    refused_since: float | None = None  # monotonic time since which the account's limit refuses batches


class _FailedLine(NamedTuple):
    """A request of a batch without a reply, and why."""

    job: ChatJob
    failure: ApiFailure


class BatchRunner:
    """Sends the jobs of a queue in batches; Dispatcher does the same with chat requests.

    Args:
        folder: gets batches.jsonl, the ledger of batches, and the files to upload.

    Attributes:
        attempts: requests sent, each counted once per batch that it was in.

    Raises:
        InputError: a key is refused, an endpoint refuses batches or does not answer for `retry.patience_s`, or a
            batch in flight belongs to an endpoint that is not in the config any more.
    """

    def __init__(self, synthesis: Synthesis, endpoints: Sequence[Endpoint], folder: Path):
        self.attempts = 0
        self._synthesis = synthesis
        self._paths = SynthesisPaths(Path(folder))
        self._stopped = asyncio.Event()
        self._retries: deque[ChatJob] = deque()
        self._workers = [
            _BatchWorker(BatchApi(each, synthesis, self._pause), EndpointState(each.base_url, each.model))
            for each in endpoints
        ]

    async def run(self, queue: JobQueue) -> None:
        """Send jobs until the queue is finished and nothing is in flight, or until stopped."""
        async with AsyncExitStack() as stack:
            self._ledger = stack.enter_context(closing(BatchLedger(self._paths.batches)))
            for worker in self._workers:
                await stack.enter_async_context(worker.api)
            with suppress(StopRequested):
                await self._resume_batches(queue)
                await _run_all(self._run_worker(worker, queue) for worker in self._workers)

    def stop(self) -> None:
        """Create no new batch and wait for none; the next run resumes those in flight."""
        self._stopped.set()

    def read_states(self) -> list[EndpointState]:
        """Return the state of each endpoint."""
        return [replace(worker.state) for worker in self._workers]

    async def _resume_batches(self, queue: JobQueue) -> None:
        """Assign the batches of an earlier run to their endpoints, before any new batch is created."""
        for batch in self._ledger:
            worker = self._find_worker(batch)
            if worker is None:
                self._ledger.record_closed(batch, "its server is gone")
                continue
            if batch.id is None:
                await self._find_batch(worker, batch)
            if batch.id is not None:
                jobs = {index: job for index in batch.jobs if (job := queue.resume_job(index)) is not None}
                worker.resumed.append((batch, jobs))

    def _find_worker(self, batch: SubmittedBatch) -> _BatchWorker | None:
        """Return the worker of the batch's endpoint; None for a loopback server, which ended with an earlier run."""
        workers = [worker for worker in self._workers if batch.is_at(worker.api.endpoint)]
        if workers:
            return min(workers, key=lambda worker: len(worker.resumed))
        if batch.is_on_loopback:
            return None
        raise InputError(
            f"{self._paths.batches} has a batch in flight at {batch.base_url} (model {batch.model!r}), which is "
            "not among synthesis.endpoints any more; put it back until the batch has ended"
        )

    async def _find_batch(self, worker: _BatchWorker, batch: SubmittedBatch) -> None:
        """Search for a batch that was being created at a kill. Twice, because its request may have been in flight."""
        metadata = self._ledger.metadata(batch)
        found = await worker.api.find(metadata)
        if found is None:
            await self._pause(self._synthesis.poll_s)
            found = await worker.api.find(metadata)
        if found is None:
            self._ledger.record_closed(batch, "never created")
        else:
            self._ledger.record_created(batch, found)

    async def _run_worker(self, worker: _BatchWorker, queue: JobQueue) -> None:
        """Run one batch after the other at one endpoint."""
        with suppress(StopRequested):
            for batch, jobs in worker.resumed:
                await self._complete(worker, batch, jobs, queue)
            while jobs := await self._collect_jobs(queue):
                batch = await self._submit(worker, jobs, queue)
                await self._complete(worker, batch, jobs, queue)

    async def _collect_jobs(self, queue: JobQueue) -> dict[int, ChatJob]:
        """Return the jobs of the next batch by index; none if the queue is finished or the run was stopped."""
        while not self._stopped.is_set() and not queue.is_finished:
            queue.wake.clear()
            jobs: dict[int, ChatJob] = {}
            while len(jobs) < self._synthesis.batch_size:
                job = self._retries.popleft() if self._retries else queue.next_job()
                if job is None:
                    break
                jobs[job.index] = job
                if len(jobs) % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            if jobs:
                return jobs
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(queue.wake.wait(), _QUEUE_POLL_S)
        return {}

    async def _submit(self, worker: _BatchWorker, jobs: dict[int, ChatJob], queue: JobQueue) -> SubmittedBatch:
        """Upload the jobs and create the batch."""
        endpoint = worker.api.endpoint
        path = self._paths.batch_upload(self._workers.index(worker))
        worker.limit_name = worker.api.limit_name
        try:
            with replace_private(path) as file:
                file.writelines(self._request_lines(worker, jobs))
            file_id = await worker.api.upload(path)
        finally:
            path.unlink(missing_ok=True)
        if self._stopped.is_set():
            raise StopRequested
        batch = self._ledger.record_creating(endpoint, list(jobs))
        for job in jobs.values():
            queue.record_sent(job)
        self.attempts += len(jobs)
        self._ledger.record_created(batch, await worker.api.create(file_id, self._ledger.metadata(batch)))
        return batch

    def _request_lines(self, worker: _BatchWorker, jobs: dict[int, ChatJob]) -> Iterator[bytes]:
        for job in jobs.values():
            body = worker.api.build_body(job.messages)
            yield _encode({"custom_id": str(job.index), "method": "POST", "url": CHAT_PATH, "body": body}) + b"\n"

    async def _complete(
        self, worker: _BatchWorker, batch: SubmittedBatch, jobs: dict[int, ChatJob], queue: JobQueue
    ) -> None:
        """Wait for the batch, deliver its answers and close it."""
        worker.state.in_flight = len(jobs)
        state = await self._wait_for(worker, batch)
        failed = await self._read_outcomes(worker, state, jobs, queue)
        has_replies = len(failed) < len(batch.jobs)
        refusal = _whole_batch_refusal(state, failed, has_replies, worker.api)
        account = next((each.failure for each in failed if each.failure.scope.is_account), None)
        for each in failed:
            if refusal or each.failure.scope.is_account or each.failure.scope is Scope.LOAD:
                (queue.record_lost if each.failure.may_be_billed else queue.record_refused)(each.job)
                self._retries.append(each.job)
            else:
                self._retry_or_give_up(each, queue, 2 * len(failed) <= len(batch.jobs))
        self._ledger.record_closed(batch, state.status)
        worker.state.in_flight = 0
        if account and not refusal:
            raise worker.api.refusal_error(account)
        if refusal and any(worker.api.accept_limit_name(each.failure, worker.limit_name) for each in failed):
            return
        await self._wait_or_raise(worker, state, refusal, has_replies)

    async def _wait_for(self, worker: _BatchWorker, batch: SubmittedBatch) -> BatchState:
        """Poll until the batch has ended or the server does not know it."""
        assert batch.id is not None
        metadata = self._ledger.metadata(batch)
        while True:
            state = await worker.api.read_state(batch.id, metadata)
            worker.state.reason = f"{batch.id} {state.status}: {state.answered:,} of {len(batch.jobs):,}"
            if state.has_ended:
                return state
            await self._pause(self._synthesis.poll_s)

    async def _read_outcomes(
        self, worker: _BatchWorker, state: BatchState, jobs: dict[int, ChatJob], queue: JobQueue
    ) -> list[_FailedLine]:
        """Deliver each reply as it is read. Return the requests without one."""
        failed: list[_FailedLine] = []
        waiting = {str(index): job for index, job in jobs.items()}

        def take(answer: BatchAnswer) -> None:
            job = waiting.pop(answer.custom_id, None)
            if job is not None and isinstance(answer.outcome, Reply):
                worker.state.replies += 1
                queue.finish(job, answer.outcome)
            elif job is not None and isinstance(answer.outcome, ApiFailure):
                worker.state.refusals += answer.outcome.scope is Scope.LOAD
                worker.state.failures += answer.outcome.scope is not Scope.LOAD
                failed.append(_FailedLine(job, answer.outcome))

        for file_id in filter(None, (state.error_file_id, state.output_file_id)):
            unreadable = await worker.api.read_answers(file_id, take)
            if unreadable:
                logger.warning("%d lines of %s at %s cannot be read", unreadable, file_id, worker.state.name)
        missing = try_failed(f"no answer in a batch that is {state.status}", state.status in ("completed", GONE))
        worker.state.failures += len(waiting)
        return failed + [_FailedLine(job, missing) for job in waiting.values()]

    def _retry_or_give_up(self, line: _FailedLine, queue: JobQueue, others_pass: bool) -> None:
        """Give up what is refused for its own sake; count other failures.

        Args:
            others_pass: most requests of the batch have replies, so a refusal without a reason concerns this prompt.
        """
        job, failure = line
        (queue.record_lost if failure.may_be_billed else queue.record_refused)(job)
        job.tries += 1
        is_own = failure.scope in (Scope.CONTENT, Scope.CONTEXT) or (failure.scope.is_refusal and others_pass)
        if is_own:
            queue.finish(job, GaveUp("refused_by_api", failure.reason))
        elif job.tries >= self._synthesis.retry.tries:
            queue.finish(job, GaveUp("refused_by_api" if failure.scope.is_refusal else "no_reply", failure.reason))
        else:
            self._retries.append(job)

    async def _wait_or_raise(
        self, worker: _BatchWorker, state: BatchState, refusal: InputError | None, has_replies: bool
    ) -> None:
        """After a batch without replies: wait if the account is at its limit (`patience_s` at most), else raise."""
        if has_replies:
            worker.refused_since = None
            return
        now = time.monotonic()
        worker.refused_since = worker.refused_since or now
        over_limit = any(error.code == _OVER_LIMIT for error in state.errors)
        is_impatient = now - worker.refused_since > self._synthesis.retry.patience_s
        if refusal and (not over_limit or is_impatient):
            raise refusal
        if is_impatient:
            raise InputError(
                f"batches at endpoint {worker.state.name} have brought no reply for retry.patience_s = "
                f"{self._synthesis.retry.patience_s:g} s; run the same command again once it works"
            )
        await self._pause(self._synthesis.poll_s)

    async def _pause(self, seconds: float) -> None:
        """Wait. Raises StopRequested if the run was stopped or is stopped meanwhile."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
            raise StopRequested


def _whole_batch_refusal(
    state: BatchState, failed: Sequence[_FailedLine], has_replies: bool, api: BatchApi
) -> InputError | None:
    """Return an error if the batch failed as a whole, or if every line was refused because of the settings."""
    endpoint = api.endpoint
    if state.status == "failed":
        reason = quote_words(state.errors[0].message if state.errors else "no reason given", endpoint.api_key)
        return InputError(
            f"endpoint {endpoint.base_url} failed a batch ({reason}); check the model and json_schema of the endpoint, "
            "or set a smaller synthesis.batch_size"
        )
    refused = [each.failure for each in failed if each.failure.scope not in (Scope.TRY, Scope.LOAD)]
    if has_replies or len(refused) < max(_MIN_REFUSED, len(failed)):
        return None
    if refused[0].scope.is_account:
        return api.refusal_error(refused[0])
    return InputError(
        f"endpoint {endpoint.base_url} refuses every request of a batch ({refused[0].reason}); check its model, "
        "api_key and json_schema, and synthesis.max_tokens"
    )


async def _run_all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all concurrently; the first error cancels the others and is raised."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
