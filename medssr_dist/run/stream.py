"""Streams between concurrent steps: JSONL files that one step appends to and the next step follows.

`questions.jsonl` leads from synthesis to the vote, `labeled.jsonl` from the vote to the trainer. Each file is both the
record and the queue, so a restart of any step loses nothing: the vote's position is its number of labels, and the
trainer's position is in its checkpoint. A small file next to the stream marks its end.

Both streams have back-pressure. The trainer publishes how many kept labels it has taken, and the vote starts no
question while more than `voting.buffer` kept labels wait. Synthesis sends no new request while more than
`voting.question_buffer` accepted questions wait for the vote. Work in flight is never dropped, so a buffer may be
exceeded by the work in flight.

However small the buffers are, the steps never deadlock:
- A step that is held back has more items on disk than its buffer allows, hence at least one that its follower has not
  taken; so the follower is not waiting for it. (Synthesis never holds back a request that other replies wait for.)
- The trainer publishes each example as it takes it, not once per training step, so a step larger than the buffer fills.
- A trainer that needs no more examples (fixed `steps`) publishes ALL_TAKEN; one that starts publishes its position.
- A step that fails ends the others (background.py), so no step waits for one that has ended.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from medssr_dist.data.checksums import LineChecker
from medssr_dist.data.json_text import parse_json
from medssr_dist.data.jsonl import open_bytes, write_json
from medssr_dist.data.records import Label, Question, parse_record, read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import end_mark, taken_file

ALL_TAKEN = sys.maxsize  # published by a trainer that needs no more labels
_POLL_S = 0.2
_CHUNK = 2**16  # bytes of whole lines that are read at once


@dataclass(frozen=True)
class _Ended:
    """The content of an end mark: the number of items for the follower."""

    count: int


@dataclass(frozen=True)
class _Taken:
    """What the trainer publishes: the number of kept labels that it has taken."""

    taken: int


class _Tail:
    """Reads the whole lines of a growing file. A longer file with the same beginning may replace the file meanwhile."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self) -> list[bytes]:
        """Return some of the lines that are new since the last call, each with its newline; [] if there are none."""
        try:
            file = open_bytes(self._path)
        except FileNotFoundError:
            return []
        with file:
            file.seek(self._offset)
            lines = file.readlines(_CHUNK)
        if lines and not lines[-1].endswith(b"\n"):  # its writer has not completed it
            lines.pop()
        self._offset += sum(map(len, lines))
        return lines


def follow(path: Path, ended: Callable[[], bool], start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of a growing JSONL file in order. After the last whole line, wait for more until `ended()`.

    A file that does not exist is an empty stream; a last line without a newline is not yielded.

    Args:
        ended: returns True once the file grows no more.
        start: number of rows to skip; they are not parsed.

    Raises:
        InputError: a line is not a JSON object, or differs from its checksum; the message names file and line.
    """
    checker = LineChecker(path, start)
    for line in islice(_lines(path, ended), start, None):
        yield _parse_line(checker, line, path)


def _parse_line(checker: LineChecker, line: bytes, path: Path) -> dict[str, Any]:
    """Return the object of the checker's next line. Raises InputError, with file and line."""
    text = checker.open(line) or b""
    where = f"{path} line {checker.number}"
    try:
        row = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        row = parse_json(text.decode("utf-8", "replace"), where)
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}, not a JSON object")
    return row


def _lines(path: Path, ended: Callable[[], bool]) -> Iterator[bytes]:
    tail = _Tail(path)
    while True:
        is_last = ended()
        while lines := tail.read():
            yield from lines
        if is_last:
            return
        time.sleep(_POLL_S)


def mark_end(stream: Path, count: int) -> None:
    """Mark that `stream` grows no more. `count`: how many items it has for its follower (questions, kept labels)."""
    write_json(end_mark(stream), asdict(_Ended(count)))


def has_ended(stream: Path) -> bool:
    """Return whether the end of `stream` is marked."""
    return end_mark(stream).exists()


def clear_end(stream: Path) -> None:
    """Remove the end mark, because `stream` will grow again."""
    end_mark(stream).unlink(missing_ok=True)


# --- questions: synthesis -> vote ---------------------------------------------------------------------------------


class QuestionFeed:
    """The questions of a growing file, in order. It never waits, and holds about 64 KiB of lines in memory.

    Args:
        ended: returns True once the file grows no more.

    Attributes:
        given: number of questions returned so far.
        ended: True once every question was returned and no more will come.
    """

    def __init__(self, path: Path, ended: Callable[[], bool] = lambda: True):
        self.given = 0
        self.ended = False
        self._path, self._file_ended = path, ended
        self._tail, self._checker = _Tail(path), LineChecker(path)
        self._lines: deque[bytes] = deque()
        self._next_read = 0.0

    def next(self) -> Question | None:
        """Return the next question; None if there is none yet. Raises InputError for a row that is not a question."""
        if not self._lines:
            self._read_more()
        if not self._lines:
            return None
        self.given += 1
        row = _parse_line(self._checker, self._lines.popleft(), self._path)
        return parse_record(Question, row, f"{self._path} line {self.given}")

    def _read_more(self) -> None:
        """Read new lines; after a read that found none, the next one is at least `_POLL_S` later."""
        if self.ended or time.monotonic() < self._next_read:
            return
        is_last = self._file_ended()
        self._lines.extend(self._tail.read())
        if not self._lines:
            self.ended = is_last
            self._next_read = time.monotonic() + _POLL_S


# --- labels: vote -> trainer --------------------------------------------------------------------------------------


def read_kept_count(labels: Path) -> int | None:
    """Return the number of kept labels of an ended stream; None if it has not ended."""
    return read_record(_Ended, end_mark(labels)).count if has_ended(labels) else None


def read_kept_labels(labels: Path) -> Iterator[Label]:
    """Yield the kept labels in order, and wait for further ones until the stream has ended."""
    return (kept.label for kept in follow_kept_labels(labels, 0))


class LabelCounter:
    """Counts the labels of a growing file.

    Attributes:
        labels: number of labels at the last `read`.
        kept: how many of them are kept.
    """

    def __init__(self, labels: Path):
        self.labels = self.kept = 0
        self._path, self._tail, self._checker = labels, _Tail(labels), LineChecker(labels)

    def read(self) -> None:
        """Count the labels that are new. Raises InputError for a line that is not a label."""
        while lines := self._tail.read():
            for line in lines:
                self.kept += parse_record(Label, _parse_line(self._checker, line, self._path), str(self._path)).kept
            self.labels += len(lines)


class KeptLabel(NamedTuple):
    """A kept label and the number of lines of the stream up to it, its own line included.

    Example: KeptLabel(position=12, label=label), for the label in line 12
    """

    position: int
    label: Label


def follow_kept_labels(labels: Path, start: int, watch: Callable[[], object] = lambda: None) -> Iterator[KeptLabel]:
    """Yield the kept labels after the first `start` lines in order, and wait until the stream has ended.

    Args:
        watch: called several times a second while there is no new label; an error it raises ends the wait.
    Raises:
        InputError: a line is not a label.
    """

    def ended() -> bool:
        watch()
        return has_ended(labels)

    rows = follow(labels, ended, start)
    for number, row in enumerate(rows, start=start + 1):
        label = parse_record(Label, row, f"{labels} line {number}")
        if label.kept:
            yield KeptLabel(number, label)


def publish_taken(labels: Path, taken: int) -> None:
    """Publish to the vote how many kept labels the trainer has taken; ALL_TAKEN if it needs no more."""
    write_json(taken_file(labels), asdict(_Taken(taken)), flush=False)  # a restarted trainer publishes first


def has_room(labels: Path, kept: int, buffer: int) -> bool:
    """Return whether at most `buffer` of the `kept` labels on disk wait for the trainer. Reads a small file."""
    file = taken_file(labels)
    return kept <= buffer or (file.exists() and kept - read_record(_Taken, file).taken <= buffer)
