"""The journal of paid replies: each reply is written to the file before anything else is done with it.

`journal.jsonl` is append-only. An entry holds the reply (or the reason why there is none) and the whole provenance of
its request. The provenance contains `prompt_hash`, by which a later run checks that the reply answers the prompt that
it would send now. `questions.jsonl` and `rejected.jsonl` are derived from the journal alone. Only the offsets of the
lines are kept in memory, 8 bytes per request.

A written line survives a kill of the process at once, and a power cut after `sync`, which runs a few times a second.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec
from pydantic import Field

from medssr_dist.data.checksums import LineChecker, seal_line
from medssr_dist.data.jsonl import open_bytes, raise_if_disk_full
from medssr_dist.data.private_files import open_private, try_lock
from medssr_dist.data.records import Provenance, Record, parse_record
from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply

_MOST_AHEAD = 10_000_000  # requests in flight: how far a number may be from the numbers before it in the file
_FIX = "put back a good copy of the file, or remove that line and run again: its request is then paid for again"
_encode = msgspec.json.Encoder().encode


class JournalEntry(Record):
    """The outcome of one request.

    Example: JournalEntry(provenance=Provenance(index=7, ...), reply='{"question": ...}', model="gpt-x",
    prompt_tokens=812, completion_tokens=140)
    """

    provenance: Provenance
    reply: str | None = Field(description="None if the request was given up")
    gave_up: str | None = Field(None, description="reason: no_reply or refused_by_api")
    detail: str = Field("", description="the last error of a request that was given up")
    model: str = Field("", description="model asked; provenance.answered_by is the model that the server reports")
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = Field(
        "", description="why the reply ended, as the server reports it; '' if it does not, or in older journals"
    )


class Journal:
    """Outcomes by request number; only one process may open the file at a time. A torn last line is removed.

    Args:
        on_entry: called with each entry of an earlier attempt.

    Attributes:
        first_missing: the lowest request number without an entry.

    Raises:
        InputError: another process has the journal open, or a line of it is not an entry.
    """

    def __init__(self, path: Path, on_entry: Callable[[JournalEntry], None] = lambda entry: None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        self._offsets = array("q")  # -1: no entry
        self._count = 0
        self.first_missing = 0
        self._end = 0
        try:
            self._file = open_private(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._reader = open_bytes(self.path)  # closed in close()
            self._scan(on_entry)
        except BaseException:
            self._lock.close()
            raise

    def __contains__(self, index: int) -> bool:
        return index < len(self._offsets) and self._offsets[index] >= 0

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> JournalEntry:
        """Return the entry of request `index`. Raises KeyError if there is none."""
        if index not in self:
            raise KeyError(index)
        self._reader.seek(self._offsets[index])
        try:
            return self._parse(LineChecker(self.path), self._reader.readline())
        except InputError:  # it was sound when the file was opened
            raise InputError(
                f"{self.path}: the reply to request {index} was damaged since this run began; {_FIX}"
            ) from None

    def append(self, provenance: Provenance, outcome: Reply | GaveUp) -> None:
        """Write one outcome. Raises InputError if the disk is full."""
        line = seal_line(_encode(_build_row(provenance, outcome)))
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.write(self._file, line[written:])
        except OSError as error:  # remove half a line: replies in flight will be written after it
            os.truncate(self.path, self._end)
            raise_if_disk_full(error, self.path)
            raise
        self._note(provenance.index, len(line))

    def sync(self) -> None:
        """Wait until all entries are on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise_if_disk_full(error, self.path)
            raise

    def close(self) -> None:
        """Close the file and release its lock."""
        self._reader.close()
        os.close(self._file)
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _scan(self, on_entry: Callable[[JournalEntry], None]) -> None:
        checker = LineChecker(self.path, fix=_FIX)
        for line in self._reader:
            if not line.endswith(b"\n"):
                os.truncate(self.path, self._end)
                return
            entry = self._parse(checker, line)
            if entry.provenance.index >= len(self._offsets) + _MOST_AHEAD:
                where = f"{self.path} line {checker.number}"
                raise InputError(f"{where}: no run has a request {entry.provenance.index} here; {_FIX}")
            self._note(entry.provenance.index, len(line))
            on_entry(entry)

    def _note(self, index: int, length: int) -> None:
        if index >= len(self._offsets):
            self._offsets.extend([-1] * (index + 1 - len(self._offsets)))
        self._count += self._offsets[index] < 0
        self._offsets[index] = self._end
        self._end += length
        while self.first_missing in self:
            self.first_missing += 1

    def _parse(self, checker: LineChecker, line: bytes) -> JournalEntry:
        text = checker.open(line) or b""
        where = f"{self.path} line {checker.number}"
        try:
            row = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            raise InputError(f"{where} is broken; {_FIX}") from None
        return parse_record(JournalEntry, row, where)


def _build_row(provenance: Provenance, outcome: Reply | GaveUp) -> dict[str, Any]:
    row: dict[str, Any] = {"schema_version": 1, "provenance": vars(provenance)}
    if isinstance(outcome, GaveUp):
        return row | {"reply": None, "gave_up": outcome.reason, "detail": outcome.detail}
    answered = {"teacher": outcome.endpoint.model, "answered_by": outcome.model}
    return row | {
        "provenance": row["provenance"] | answered,
        "reply": outcome.text,
        "model": outcome.endpoint.model,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "finish_reason": outcome.finish_reason,
    }


def _lock(path: Path) -> IO[str]:
    """Return an open file that holds the journal's lock until it is closed or its process ends."""
    handle = open_private(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    file = open(handle, "r+", encoding="utf-8", errors="replace")  # noqa: SIM115
    if not try_lock(file, path):
        holder = file.read().strip() or "unknown"
        file.close()
        raise InputError(
            f"{path} is in use by another run (process {holder}); wait for it to end, or use another --run-dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file
