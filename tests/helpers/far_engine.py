"""An engine for tests of the pool: it answers, dies, hangs or refuses as the test specifies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from medssr_dist.inference.engine_protocol import EngineOutput, FailedLease, LeasedCompletion
from medssr_dist.inference.requests import Completion, SampleRequest


def numbered(request: SampleRequest, seed: int) -> Completion:
    return Completion(seed, f"{request.key}/{seed}", 4, truncated=False)


class FarEngine:
    """Takes `delay` seconds per sample.

    Args:
        fault: (engine, request) -> 'die', 'die at N', 'hang', 'refuse', or None.
        on_start: called with the number of the start; may raise.
        answer: (request, seed) -> the sample.

    Attributes:
        attempts: number of starts.
        given: all requests submitted.
        aborted: ids of all leases aborted.
    """

    def __init__(
        self,
        name: str = "engine",
        delay: float = 0.0,
        fault: Callable = lambda engine, request: None,
        on_start: Callable = lambda attempt: None,
        answer: Callable[[SampleRequest, int], Completion] = numbered,
    ):
        self.name, self.delay, self._fault, self._on_start, self._answer_of = name, delay, fault, on_start, answer
        self.attempts = 0
        self.given: list[SampleRequest] = []
        self.aborted: list[int] = []
        self._tasks: dict[int, asyncio.Task] = {}

    async def start(self):
        self.attempts += 1
        self._on_start(self.attempts)
        self._tasks, self._done = {}, asyncio.Queue()

    def submit(self, requests, aborted):
        for lease, request in requests:
            self.given.append(request)
            self._tasks[lease] = asyncio.ensure_future(self._answer(lease, request))
        for lease in aborted:
            self.aborted.append(lease)
            if lease in self._tasks:
                self._tasks.pop(lease).cancel()

    async def _answer(self, lease, request):
        fault = self._fault(self, request)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "refuse":
            self._done.put_nowait(EngineOutput(failed=[FailedLease(lease, "bad prompt")]))
            return
        for index in range(request.n):
            await asyncio.sleep(self.delay)
            if fault in ("die", f"die at {index}"):
                self._done.put_nowait(RuntimeError("engine core died"))
                return
            sample = self._answer_of(request, request.seed + index)
            self._done.put_nowait(EngineOutput([LeasedCompletion(lease, sample)], tokens=sample.tokens))

    async def collect(self):
        found = await self._done.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def stop(self):
        for task in self._tasks.values():
            task.cancel()
