"""batches.jsonl: which batches were bought, so that a kill at any moment neither loses a batch nor buys it twice.

A batch costs money from its creation on. The line `creating` is in the file before the creation is requested, the
line `created` as soon as the server has named the batch, and `closed` when all its answers are delivered. If a kill
comes while a batch is being created, it is found again in the server's list by its metadata: the run's random id and
the batch's number in the run.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medssr_dist.config.synthesis import Endpoint
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.errors import InputError


@dataclass
class SubmittedBatch:
    """One batch.

    Attributes:
        part: its number in the run, as text.
        jobs: the indices of its requests.
        id: the server's name for it; None while it is being created.

    Example: SubmittedBatch("0", "https://host/v1", "gpt-x", [0, 1, 2], id="batch_67f0")
    """

    part: str
    base_url: str
    model: str
    jobs: list[int]
    id: str | None = None

    def is_at(self, endpoint: Endpoint) -> bool:
        """Return whether the batch was created at `endpoint`."""
        return (self.base_url, self.model) == (endpoint.base_url, endpoint.model)

    @property
    def is_on_loopback(self) -> bool:
        """Whether its server may have ended together with the run, as the offline teacher does."""
        return urlsplit(self.base_url).hostname == "127.0.0.1"


class BatchLedger:
    """The batches of a run that are not closed; iteration yields them.

    Raises:
        InputError: the file has a line that is no record of a batch.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self._file = JsonlLedger(self._path)  # removes a torn last line
        self._run = ""
        self._parts = 0
        self._open: dict[str, SubmittedBatch] = {}
        try:
            for row in read_jsonl(self._path):
                self._apply(row)
        except (KeyError, TypeError, AttributeError):
            self._file.close()
            raise InputError(f"{self._path} holds a line that is no record of a batch; drop that line") from None
        if not self._run:
            self._write({"event": "run", "run": uuid.uuid4().hex})

    def __iter__(self) -> Iterator[SubmittedBatch]:
        return iter(list(self._open.values()))

    def metadata(self, batch: SubmittedBatch) -> dict[str, str]:
        """Return the metadata that identifies the batch among all batches of the account."""
        return {"medssr_run": self._run, "medssr_part": batch.part}

    def record_creating(self, endpoint: Endpoint, jobs: list[int]) -> SubmittedBatch:
        """Record that a batch of these requests is about to be created."""
        part = f"{self._parts}"
        row = {"event": "creating", "part": part, "base_url": endpoint.base_url, "model": endpoint.model, "jobs": jobs}
        self._write(row)
        return self._open[part]

    def record_created(self, batch: SubmittedBatch, batch_id: str) -> None:
        """Record the server's name for the batch."""
        self._write({"event": "created", "part": batch.part, "id": batch_id})

    def record_closed(self, batch: SubmittedBatch, why: str) -> None:
        """Record that the batch will bring no further answers."""
        self._write({"event": "closed", "part": batch.part, "why": why})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.append(row)
        self._apply(row)

    def _apply(self, row: dict[str, Any]) -> None:
        event = row["event"]
        if event == "run":
            self._run = row["run"]
        elif event == "creating":
            self._parts += 1
            self._open[row["part"]] = SubmittedBatch(row["part"], row["base_url"], row["model"], row["jobs"])
        elif event == "created":
            self._open[row["part"]].id = row["id"]
        elif event == "closed":
            del self._open[row["part"]]
