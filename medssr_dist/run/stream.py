"""The streams that let synthesis, vote and stage 1 go on side by side: files that one appends and the next follows.

`questions.jsonl` runs from synthesis to vote, `labeled.jsonl` from vote to trainer. Each is both the record and the
queue, so a restart of any side loses nothing: the vote's place is its number of labels, the trainer's is in its
checkpoint. The end is marked by a small file beside the stream; a finished file is a stream with its end marked.

Both streams are bounded. The trainer publishes how many kept labels it has taken, and the vote begins no question
while it lags by more than `voting.buffer`; synthesis asks for nothing new while the vote lags by more than
`voting.question_buffer` accepted questions. What is under way is never dropped, so a bound may be passed by that much.

No side waits for another in a circle, however small the buffers:
- Who is held back has more than its buffer, hence at least one item, on disk that its follower has not taken; the
  follower is thus not waiting for it. (A request whose reply others wait for to be judged is never held back.)
- The trainer tells of each example as it takes it, not once a step, so a step larger than the buffer fills.
- Who stops taking (fixed `steps`) says that it has taken everything; who begins anew says how far it is.
- Who ends, ends the others (sides.py), so nobody waits for one that is gone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import Label, Question, parse_record
from medssr_dist.run.paths import end_mark, taken_file

ALL_TAKEN = sys.maxsize  # what a trainer publishes that will take no more
_POLL_S = 0.2
_CHUNK = 2**16  # bytes read at a look, whole lines


class _Tail:
    """The whole lines of a file that grows, or is replaced by a longer one with the same beginning."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self) -> list[bytes]:
        """Some of the lines that have come since, each with its newline; [] when there are none."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return []
        with file:
            file.seek(self._offset)
            lines = file.readlines(_CHUNK)
        if lines and not lines[-1].endswith(b"\n"):  # its writer is still at it
            lines.pop()
        self._offset += sum(map(len, lines))
        return lines


def follow(path: Path, ended: Callable[[], bool], start: int = 0) -> Iterator[dict]:
    """Yield the rows of a growing JSONL file in order; after its last whole line wait until `ended()`.

    Args:
        start: rows to pass over, unread.
    """
    return map(json.loads, islice(_lines(path, ended), start, None))


def _lines(path: Path, ended: Callable[[], bool]) -> Iterator[bytes]:
    tail = _Tail(path)
    while True:
        last_look = ended()
        while lines := tail.read():
            yield from lines
        if last_look:
            return
        time.sleep(_POLL_S)


def mark_end(stream: Path, count: int) -> None:
    """Say that nothing will follow in `stream`; `count` is what there is for its follower: kept labels, questions."""
    write_json(end_mark(stream), {"count": count})


def has_ended(stream: Path) -> bool:
    return end_mark(stream).exists()


def clear_end(stream: Path) -> None:
    """Take the mark back: `stream` goes on."""
    end_mark(stream).unlink(missing_ok=True)


# --- questions: synthesis -> vote ---------------------------------------------------------------------------------


class QuestionFeed:
    """The questions of a file that may still grow, in order. Never waits; holds one look's lines, about 64 KiB.

    Args:
        ended: whether the file will grow no more.

    Attributes:
        given: questions given so far.
        ended: all are given and none will come; turns true in the `next` that finds it so.
    """

    def __init__(self, path: Path, ended: Callable[[], bool] = lambda: True):
        self.given = 0
        self.ended = False
        self._path, self._file_ended = path, ended
        self._tail = _Tail(path)
        self._lines: deque[bytes] = deque()
        self._next_look = 0.0

    def next(self) -> Question | None:
        """The next question; None when there is none now. Raises InputError for a row that is no question."""
        if not self._lines:
            self._look()
        if not self._lines:
            return None
        self.given += 1
        return parse_record(Question, json.loads(self._lines.popleft()), str(self._path))

    def _look(self) -> None:
        """Read on; where nothing had come the last time, not before a while has passed."""
        if self.ended or time.monotonic() < self._next_look:
            return
        last_look = self._file_ended()
        self._lines.extend(self._tail.read())
        if not self._lines:
            self.ended = last_look
            self._next_look = time.monotonic() + _POLL_S


# --- labels: vote -> trainer --------------------------------------------------------------------------------------


def read_kept_count(labels: Path) -> int | None:
    """Number of kept labels once the stream has ended, else None."""
    return read_json(end_mark(labels))["count"] if has_ended(labels) else None


def read_kept_labels(labels: Path) -> Iterator[Label]:
    """Kept labels in ledger order, waiting for those that are still to come."""
    return (label for _, label in follow_kept_labels(labels, 0))


def follow_kept_labels(
    labels: Path, start: int, watch: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, Label]]:
    """(lines of the ledger up to and with it, kept label), beginning after the first `start` lines.

    Args:
        watch: called several times a second while there is nothing to give; what it raises ends the waiting.
    """

    def ended() -> bool:
        watch()
        return has_ended(labels)

    rows = follow(labels, ended, start)
    for number, row in enumerate(rows, start=start + 1):
        label = parse_record(Label, row, str(labels))
        if label.kept:
            yield number, label


def publish_taken(labels: Path, taken: int) -> None:
    """Tell the voters how many kept labels the trainer has taken; ALL_TAKEN once it will take no more."""
    file = taken_file(labels)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"taken": taken}))  # not synced: a restart begins by publishing
    os.replace(temporary, file)


def has_room(labels: Path, kept: int, buffer: int) -> bool:
    """Whether the trainer lags by `buffer` at most behind the `kept` labels that are on disk. Reads a small file."""
    file = taken_file(labels)
    return kept <= buffer or (file.exists() and kept - read_json(file)["taken"] <= buffer)
