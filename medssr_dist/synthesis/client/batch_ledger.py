"""Which batches were bought: batches.jsonl, so that a kill at any moment neither loses one nor buys it twice.

A batch costs money from its creation on. The line `creating` stands in the file before the creation is asked
for, `created` as soon as the server has named the batch, `closed` when all its answers are delivered. One that
was being created at a kill is found again in the server's list by its metadata: the run's key and its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from medssr_dist.config.synthesis import Endpoint
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.errors import InputError


@dataclass
class SubmittedBatch:
    """One batch. `id` is the server's name for it, None while it is being created."""

    part: str
    base_url: str
    model: str
    jobs: list[int]
    id: str | None = None

    def is_at(self, endpoint: Endpoint) -> bool:
        """Whether `endpoint` is the one that the batch was created at."""
        return (self.base_url, self.model) == (endpoint.base_url, endpoint.model)

    @property
    def is_on_loopback(self) -> bool:
        """Whether its server may have been one that lived as long as the run: the offline teacher."""
        return urlsplit(self.base_url).hostname == "127.0.0.1"


class BatchLedger:
    """The batches of a run that are not closed.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self._file = JsonlLedger(self._path)  # cuts a torn last line off
        self._run = ""
        self._parts = 0
        self._open: dict[str, SubmittedBatch] = {}
        try:
            for row in read_jsonl(self._path):
                self._take(row)
        except (KeyError, TypeError):
            self._file.close()
            raise InputError(f"{self._path} holds a line that is no record of a batch; drop that line") from None
        if not self._run:
            self._write({"event": "run", "run": uuid.uuid4().hex})

    def __iter__(self) -> Iterator[SubmittedBatch]:
        return iter(list(self._open.values()))

    def metadata(self, batch: SubmittedBatch) -> dict[str, str]:
        """What tells the batch from all others of the account."""
        return {"medssr_run": self._run, "medssr_part": batch.part}

    def creating(self, endpoint: Endpoint, jobs: list[int]) -> SubmittedBatch:
        """Record that a batch of these requests is about to be created."""
        part = f"{self._parts}"
        row = {"event": "creating", "part": part, "base_url": endpoint.base_url, "model": endpoint.model, "jobs": jobs}
        self._write(row)
        return self._open[part]

    def created(self, batch: SubmittedBatch, batch_id: str) -> None:
        """Record the server's name for the batch."""
        self._write({"event": "created", "part": batch.part, "id": batch_id})

    def closed(self, batch: SubmittedBatch, why: str) -> None:
        """Record that nothing more is to be had of the batch."""
        self._write({"event": "closed", "part": batch.part, "why": why})

    def close(self) -> None:
        self._file.close()

    def _write(self, row: dict) -> None:
        self._file.append(row)
        self._take(row)

    def _take(self, row: dict) -> None:
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
