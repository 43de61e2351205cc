"""One chat request of a run, and the queue from which a client takes such requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from medssr_dist.synthesis.client.chat_client import GaveUp, Reply


@dataclass(slots=True)
class ChatJob:
    """One chat request.

    Attributes:
        index: number of the request in the run.
        messages: the chat messages to send.
        tokens: estimate of the prompt and the longest allowed reply together.
        prompt_tokens: estimate of the prompt alone.
        kind: what is asked for; a question and the verdict on it have the same number.
        tries: failed tries that count against this request.

    Example: ChatJob(7, [{"role": "user", "content": "Write ..."}], tokens=1836, prompt_tokens=812)
    """

    index: int
    messages: list[dict[str, str]]
    tokens: int
    prompt_tokens: int
    tries: int = 0
    kind: Literal["question", "verdict"] = "question"


class JobQueue(Protocol):
    """Where the dispatcher and the batch runner get their jobs, and where they report what became of them.

    Each try is reported once by `record_sent`, and once by `record_refused`, `record_lost` or `finish`.
    """

    wake: asyncio.Event  # set when there may be something new to send

    @property
    def is_finished(self) -> bool:
        """Whether no further job will come."""

    def next_job(self, probe: bool = False) -> ChatJob | None:
        """Return a new job, or None if there is none now. `probe`: it tests an endpoint that fails."""

    def resume_job(self, index: int) -> ChatJob | None:
        """Return job `index` that an earlier attempt sent in a batch, or None if its outcome is known."""

    def record_sent(self, job: ChatJob) -> None:
        """A try is about to be sent."""

    def record_refused(self, job: ChatJob) -> None:
        """A try ended without a reply, and is not billed."""

    def record_lost(self, job: ChatJob) -> None:
        """A try ended without a reply, and may be billed."""

    def finish(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Take the outcome of a job; called once for each job."""
