"""The stream of kept labels from the vote to the trainer: a file that one side appends and the other follows.

`labeled.jsonl` is both the record and the queue, so a restart of either side loses nothing: the
trainer's checkpoint holds how many labels it has taken. The stream is bounded: the trainer publishes
how far it is, and the voters wait when it lags by more than `voting.buffer`. A finished file is the
same stream with its end already marked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medssr_dist.jsonl import read_json, write_json
from medssr_dist.records import Label, parse_record

_POLL_S = 0.5


def follow(path: Path, ended: Callable[[], bool]) -> Iterator[dict]:
    """Yield the rows of a growing JSONL file in order; after its last whole line wait until `ended()`."""
    position = 0
    while True:
        last_look = ended()
        if path.exists():
            with open(path, "rb") as file:  # as bytes: the last line may end in the middle of a character
                file.seek(position)
                while (line := file.readline()).endswith(b"\n"):
                    position = file.tell()
                    yield json.loads(line)
        if last_look:
            return
        time.sleep(_POLL_S)


def _end_file(labels: Path) -> Path:
    return labels.with_name("labeled.end.json")


def mark_end(labels: Path, kept: int) -> None:
    """Say that no label will follow."""
    write_json(_end_file(labels), {"kept": kept})


def kept_at_end(labels: Path) -> int | None:
    """Number of kept labels once the stream has ended, else None."""
    return read_json(_end_file(labels))["kept"] if _end_file(labels).exists() else None


def kept_labels(labels: Path) -> Iterator[Label]:
    """Kept labels in ledger order, waiting for those that are still to come."""
    for row in follow(labels, lambda: _end_file(labels).exists()):
        label = parse_record(Label, row, str(labels))
        if label.kept:
            yield label


def publish_taken(labels: Path, taken: int) -> None:
    """Tell the voters how many kept labels the trainer has taken."""
    write_json(labels.with_name("labeled.taken.json"), {"taken": taken})


def wait_for_room(labels: Path, kept: int, buffer: int, should_stop: Callable[[], bool]) -> None:
    """Block while the trainer lags by more than `buffer` kept labels behind `kept`."""
    taken_file = labels.with_name("labeled.taken.json")
    while not should_stop():
        taken = read_json(taken_file)["taken"] if taken_file.exists() else 0
        if kept - taken <= buffer:
            return
        time.sleep(_POLL_S)
