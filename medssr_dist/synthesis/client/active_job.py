"""A job that the dispatcher has taken and not finished, and its tries in flight. Times are monotonic seconds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import inf

from medssr_dist.synthesis.client.endpoint import EndpointWorker
from medssr_dist.synthesis.client.job import ChatJob


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A job that is not finished: its tries in flight, and its failures, whether they count against it or not.

    `refused_at`: when its last refusal came; `alone`: refusals when there were no other jobs to ask.
    """

    job: ChatJob
    tries: list[ActiveTry] = field(default_factory=list)
    failures: int = 0
    refused_at: float = inf
    alone: int = 0
    failed_at: float = -inf


@dataclass(slots=True, eq=False)
class ActiveTry:
    """One try in flight."""

    active: ActiveJob
    worker: EndpointWorker
    sent_at: float
    task: asyncio.Task[None] = field(init=False)
