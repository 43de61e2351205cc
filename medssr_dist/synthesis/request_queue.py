"""What to ask next, and when to stop: N accepted, a cap on candidates, a budget.

Requests are asked in the order of their numbers, and replies are judged in that order, so the accepted set
is the first N accepted by number: the same however requests overlapped, failed or were interrupted. No more
are asked at once than are needed at the share accepted so far, so near the end little is bought in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssr_dist.config.synthesis import Synthesis
from medssr_dist.data.records import Provenance
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending, TokenCounter
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.journal import Journal

if TYPE_CHECKING:
    from medssr_dist.synthesis.request_plan import RequestPlan


@dataclass
class Judged:
    """How far the replies have been judged, in order of the requests."""

    done: int = 0
    accepted: int = 0


class RequestQueue:
    """Gives the dispatcher its jobs and takes their outcomes to the journal.

    Args:
        judged: kept up to date by who judges; `wake.set()` tells that it changed.
        should_stop: polled; once true nothing more is asked.
        hold: polled with the number accepted at most by now; while true nothing new is asked, and what is on its
            way goes on.
    """

    def __init__(
        self,
        synthesis: Synthesis,
        plan: RequestPlan,
        journal: Journal,
        reservations: ReservationLedger,
        spending: Spending,
        judged: Judged,
        should_stop: Callable[[], bool] = lambda: False,
        hold: Callable[[int], bool] = lambda accepted: False,
    ):
        self.wake = asyncio.Event()
        self.asked = 0
        self.asked_again = 0
        self.delivered = 0
        self._synthesis = synthesis
        self._plan = plan
        self._journal = journal
        self._reservations = reservations
        self._spending = spending
        self._judged = judged
        self._should_stop = should_stop
        self._hold = hold
        self._held_since: float | None = None
        self.held_s = 0.0  # time during which `hold` was true
        self._count_tokens = TokenCounter()
        self._provenances: dict[int, Provenance] = {}  # of the requests in flight
        self._cursor = 0
        self._out_of_budget = False

    def next_job(self, probe: bool = False) -> ChatJob | None:
        """The next new request; None when there is nothing to ask for now.

        Args:
            probe: one is needed to see whether the endpoint answers, even if enough are on their way.
        """
        if self.stopping or self.enough:
            return None
        while self._cursor in self._journal or self._cursor in self._provenances:
            self._cursor += 1
        for_now = self._held() or self._enough_asked()
        if self._cursor >= self._synthesis.most_candidates or (for_now and not probe):
            return None
        job, provenance = self._build(self._cursor)
        self._out_of_budget = not self._spending.reserve(job)
        if self._out_of_budget:
            return None
        self._provenances[job.index] = provenance
        self._cursor += 1
        self.asked += 1
        self.asked_again += self._reservations.was_in_flight(job.index)
        return job

    def resume_job(self, index: int) -> ChatJob | None:
        """Request `index`, on its way since an earlier attempt (in a batch); None if its outcome is known."""
        if index in self._journal:
            return None
        job, provenance = self._build(index)
        self._provenances[index] = provenance
        self._spending.count_lost(-self._reservations.read(index), tries=0)  # not lost: it is still to come
        self._spending.reserve(job, forced=True)
        return job

    @property
    def in_flight(self) -> int:
        """Requests given out whose outcome is still to come."""
        return len(self._provenances)

    def _build(self, index: int) -> tuple[ChatJob, Provenance]:
        request = self._plan.request(index)
        prompt_tokens = self._count_tokens(request.messages)
        job = ChatJob(index, request.messages, prompt_tokens + self._synthesis.max_tokens, prompt_tokens)
        return job, request.provenance

    @property
    def stopping(self) -> bool:
        """Somebody asked for the run to end."""
        return self._should_stop()

    @property
    def enough(self) -> bool:
        """As many questions are accepted as are wanted."""
        return self._judged.accepted >= self._synthesis.accepted

    @property
    def is_finished(self) -> bool:
        """Nothing will be asked for any more."""
        if self.stopping or self.enough:
            return True
        waiting = self.in_flight or self._judged.done < self._journal.first_missing
        return not waiting and (self._out_of_budget or self._cursor >= self._synthesis.most_candidates)

    @property
    def stopped_by(self) -> str:
        """'count', 'cap' or 'budget'; of a finished queue that nobody stopped."""
        if self.enough:
            return "count"
        return "budget" if self._out_of_budget else "cap"

    def record_sent(self, job: ChatJob) -> None:
        """A try goes on the wire."""
        self._reservations.add(job.index, job.tokens)

    def record_refused(self, job: ChatJob) -> None:
        """A try came back refused: it is not billed."""
        self._reservations.add(job.index, -job.tokens)

    def record_lost(self, job: ChatJob) -> None:
        """A try ended without a reply after it was sent; it may be billed, so the budget takes it as spent."""
        self._spending.count_lost(job.tokens)

    def finish(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Write the outcome to the journal: exactly once a job. Raises InputError when the disk is full."""
        provenance = self._provenances.pop(job.index)
        self._journal.append(provenance, outcome)
        if isinstance(outcome, Reply):
            self._reservations.add(job.index, -job.tokens)
        self._spending.settle(job, outcome)
        self.delivered += 1
        self.wake.set()

    def _held(self) -> bool:
        """Whether whoever follows the questions lags too far behind, should all replies that are there be accepted.

        Never for a request that was left out by an earlier attempt: replies after it wait for it to be judged.
        """
        most = self._judged.accepted + len(self._journal) - self._judged.done
        gap = self._cursor == self._journal.first_missing < len(self._journal)
        held, now = not gap and self._hold(most), time.monotonic()
        if self._held_since is not None:
            self.held_s += now - self._held_since
        self._held_since = now if held else None
        return held

    def _enough_asked(self) -> bool:
        """Whether what is asked and not yet judged will do, at the share accepted so far."""
        missing = self._synthesis.accepted - self._judged.accepted
        share = (self._judged.accepted + 1) / (self._judged.done + 1)
        return self._cursor - self._judged.done >= missing / share
