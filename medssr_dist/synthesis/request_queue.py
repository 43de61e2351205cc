"""Which requests are sent next, and when to stop: enough questions accepted, a cap on requests, or a budget.

Requests are sent in the order of their numbers, and replies are judged in that order. The accepted set is therefore
the first N accepted by number, no matter how requests overlapped, failed or were interrupted. Only as many requests
are in flight as are needed at the share accepted so far, so little is bought in vain near the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssr_dist.config.synthesis import Synthesis
from medssr_dist.data.records import Provenance
from medssr_dist.run.demand import QuestionDemand
from medssr_dist.synthesis.client.budget import PaidTries, ReservationLedger, Spending
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.journal import Journal

if TYPE_CHECKING:
    from medssr_dist.synthesis.request_plan import RequestPlan


@dataclass
class JudgedCount:
    """How many replies are judged, in the order of the requests. Example: JudgedCount(total=120, accepted=96)"""

    total: int = 0
    accepted: int = 0


class RequestQueue(PaidTries):
    """Gives jobs to the dispatcher or the batch runner, and writes their outcomes to the journal.

    Args:
        demand: how many accepted questions are wanted.
        judged: updated by the caller who judges the replies; `wake.set()` then reports the change.
        should_stop: polled; once true, no further request is sent.
        should_hold: back-pressure. Called with the number of questions that may be accepted so far; while it returns
            true, no new request is sent, and those in flight continue.

    Attributes:
        requests_sent: requests that this attempt gave out.
        asked_again: those of them that were in flight when an earlier attempt ended.
        delivered: outcomes written to the journal by this attempt.
        held_s: seconds during which `should_hold` returned true.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        plan: RequestPlan,
        journal: Journal,
        reservations: ReservationLedger,
        spending: Spending,
        demand: QuestionDemand,
        judged: JudgedCount,
        should_stop: Callable[[], bool] = lambda: False,
        should_hold: Callable[[int], bool] = lambda accepted: False,
    ):
        self.wake = asyncio.Event()
        self.requests_sent = 0
        self.asked_again = 0
        self.delivered = 0
        self.held_s = 0.0
        self._synthesis = synthesis
        self._plan = plan
        self._journal = journal
        super().__init__(reservations, spending)
        self._demand = demand
        self._judged = judged
        self._should_stop = should_stop
        self._should_hold = should_hold
        self._held_since: float | None = None
        self._provenances: dict[int, Provenance] = {}  # of the requests in flight
        self._cursor = 0
        self._out_of_budget = False

    def next_job(self, probe: bool = False) -> ChatJob | None:
        """Return the next new request, or None if none is to be sent now.

        Args:
            probe: the request tests whether the endpoint answers, so it is given out even if enough are in flight.
        """
        if self.is_stopping or self._has_enough_now():
            return None
        while self._cursor in self._journal or self._cursor in self._provenances:
            self._cursor += 1
        must_wait = self._is_held() or self._enough_in_flight()
        if self._cursor >= self._synthesis.most_candidates or (must_wait and not probe):
            return None
        job, provenance = self._build(self._cursor)
        self._out_of_budget = not self._spending.reserve(job)
        if self._out_of_budget:
            return None
        self._provenances[job.index] = provenance
        self._cursor += 1
        self.requests_sent += 1
        self.asked_again += self._reservations.was_in_flight(job.index)
        return job

    def resume_job(self, index: int) -> ChatJob | None:
        """Return request `index`, which an earlier attempt sent in a batch, or None if its outcome is known."""
        if index in self._journal:
            return None
        job, provenance = self._build(index)
        self._provenances[index] = provenance
        self._spending.count_lost(-self._reservations.read(index), tries=0)  # not lost: its reply is still to come
        self._spending.reserve(job, forced=True)
        return job

    @property
    def in_flight(self) -> int:
        """Number of requests that were given out and have no outcome yet."""
        return len(self._provenances)

    def _build(self, index: int) -> tuple[ChatJob, Provenance]:
        request = self._plan.build_request(index)
        prompt_tokens = self._count_tokens(request.messages)
        job = ChatJob(index, request.messages, prompt_tokens + self._synthesis.max_tokens, prompt_tokens)
        return job, request.provenance

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._should_stop()

    @property
    def has_enough(self) -> bool:
        """Whether as many questions are accepted as are wanted, and no more will be wanted."""
        return self._has_enough_now() and self._demand.is_settled

    @property
    def is_finished(self) -> bool:
        """Whether no further request will be sent."""
        if self.is_stopping or self.has_enough:
            return True
        waiting = self.in_flight or self._judged.total < self._journal.first_missing
        return not waiting and (self._out_of_budget or self._cursor >= self._synthesis.most_candidates)

    @property
    def stopped_by(self) -> str:
        """Why a finished queue ended, if it was not asked to stop: 'count', 'cap' or 'budget'."""
        if self.has_enough:
            return "count"
        return "budget" if self._out_of_budget else "cap"

    def finish(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Write the outcome to the journal, exactly once per job. Raises InputError if the disk is full."""
        outcome = self.correct_usage(job, outcome)
        self._journal.append(self._provenances.pop(job.index), outcome)
        self.settle(job, outcome)
        self.delivered += 1
        self.wake.set()

    def _has_enough_now(self) -> bool:
        return self._judged.accepted >= self._demand.count_wanted()

    def _is_held(self) -> bool:
        """Whether the reader of the questions would lag too far behind if all replies so far were accepted.

        Never for a request that an earlier attempt left out: later replies can only be judged after it.
        """
        most_accepted = self._judged.accepted + len(self._journal) - self._judged.total
        fills_gap = self._cursor == self._journal.first_missing < len(self._journal)
        held, now = not fills_gap and self._should_hold(most_accepted), time.monotonic()
        if self._held_since is not None:
            self.held_s += now - self._held_since
        self._held_since = now if held else None
        return held

    def _enough_in_flight(self) -> bool:
        """Whether the requests that are sent and not judged yet will be enough, at the share accepted so far."""
        missing = self._demand.count_wanted() - self._judged.accepted
        share = (self._judged.accepted + 1) / (self._judged.total + 1)
        return self._cursor - self._judged.total >= missing / share
