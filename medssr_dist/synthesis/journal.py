"""The journal of paid replies: each is on disk before anything else is done with it.

`journal.jsonl` is append-only; an entry holds the reply and the whole provenance of its request, so
that `questions.jsonl` and `rejected.jsonl` follow from the journal alone. Only line offsets are held
in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from pydantic import Field

from medssr_dist.errors import InputError
from medssr_dist.jsonl import JsonlLedger
from medssr_dist.records import Provenance, Record, parse_record


class JournalEntry(Record):
    """One paid reply.

    Example: JournalEntry(provenance=Provenance(index=7, ...), reply='{"question": ...}', model="gpt-x-0613",
    prompt_tokens=812, completion_tokens=140)
    """

    provenance: Provenance
    reply: str
    model: str = Field(description="model that the server says answered; provenance.teacher is the one asked for")
    prompt_tokens: int
    completion_tokens: int


class Journal:
    """Paid replies by request index, held by one process at a time.

    Raises:
        InputError: another process holds the journal, or a line of it is not an entry.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self._ledger = JsonlLedger(self.path)  # cuts a torn last line off
            self._reader = open(self.path, "rb")  # noqa: SIM115 - closed in close()
            self._places: dict[int, tuple[int, str]] = {}  # index -> line offset, prompt hash
            self._end = 0
            for line in self._reader:
                self._note(self._parse(line), len(line))
        except BaseException:
            self._lock.close()
            raise

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __len__(self) -> int:
        return len(self._places)

    def prompt_hash(self, index: int) -> str:
        """The hash of the prompt that the reply to request `index` answers."""
        return self._places[index][1]

    def read(self, index: int) -> JournalEntry:
        """The entry of request `index`. Raises KeyError if there is none."""
        self._reader.seek(self._places[index][0])
        return self._parse(self._reader.readline())

    def append(self, entry: JournalEntry) -> None:
        """Write `entry` through to the disk. Raises InputError when the disk is full."""
        try:
            self._ledger.append(entry.model_dump())
        except BaseException:  # half a line must not stand before the replies that are still on the wire
            os.truncate(self.path, self._end)
            raise
        self._note(entry, self.path.stat().st_size - self._end)

    def close(self) -> None:
        self._reader.close()
        self._ledger.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _note(self, entry: JournalEntry, length: int) -> None:
        self._places[entry.provenance.index] = (self._end, entry.provenance.prompt_hash)
        self._end += length

    def _parse(self, line: bytes) -> JournalEntry:
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{self.path} holds a broken line: {line[:80]!r}; drop that line and run again") from None
        return parse_record(JournalEntry, row, str(self.path))


def _lock(path: Path):
    """An open file that holds the journal's lock until it is closed or its process ends."""
    file = open(path.with_name(f".{path.name}.lock"), "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise InputError(
            f"{path} is in use by another run (process {holder}); wait for it to end, or use another --run-dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file
