"""The queue of verdict requests: what the judge's client sends, in the order of the questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from medssr_dist.config.synthesis import Judge
from medssr_dist.data.records import Provenance
from medssr_dist.synthesis.client.budget import PaidTries, ReservationLedger, Spending
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.judge import QuestionJudge


class VerdictQueue(PaidTries):
    """Gives the judge's requests to a dispatcher and writes their outcomes to the journal of verdicts.

    A verdict that the budget does not allow, even with nothing in flight, is journaled as given up: the question is
    counted as not judged.

    Args:
        is_over: returns whether no further verdict is needed.
        should_stop: polled; once true, no further request is sent.

    Attributes:
        requests_sent: requests that this attempt gave out.
    """

    def __init__(
        self,
        settings: Judge,
        judge: QuestionJudge,
        reservations: ReservationLedger,
        spending: Spending,
        is_over: Callable[[], bool],
        should_stop: Callable[[], bool],
    ):
        self.wake = asyncio.Event()
        self.requests_sent = 0
        self._settings = settings
        self._judge = judge
        super().__init__(reservations, spending)
        self._is_over = is_over
        self._should_stop = should_stop
        self._provenances: dict[int, Provenance] = {}  # of the requests in flight

    @property
    def is_finished(self) -> bool:
        """Whether no further request will be sent."""
        return self._should_stop() or (self._is_over() and not self._provenances)

    def next_job(self, probe: bool = False) -> ChatJob | None:
        """Return the request for the next question that waits for its verdict; None if none is to be sent now."""
        waiting = self._judge.waiting
        while waiting and not self._should_stop() and not self._is_over():
            messages, provenance = waiting[0]
            prompt_tokens = self._count_tokens(messages)
            most = prompt_tokens + self._settings.max_tokens
            job = ChatJob(provenance.index, messages, most, prompt_tokens, kind="verdict")
            if self._spending.reserve(job):
                waiting.popleft()
                self._provenances[job.index] = provenance
                self.requests_sent += 1
                return job
            if self._spending.has_reservations:
                return None  # replies in flight may cost less than was reserved for them
            waiting.popleft()
            self._judge.journal.append(provenance, GaveUp("no_budget", "the budget was spent"))
        return None

    def resume_job(self, index: int) -> ChatJob | None:
        """Return None: verdicts are never sent in batches."""
        return None

    def finish(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Write the verdict to its journal, exactly once per job. Raises InputError if the disk is full."""
        outcome = self.correct_usage(job, outcome)
        self._judge.journal.append(self._provenances.pop(job.index), outcome)
        self.settle(job, outcome)
        self.wake.set()
