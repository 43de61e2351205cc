"""Votes on disk, in segments of 4096 questions: plain JSONL while votes arrive, gzip once all questions have labels.

`00000.jsonl` holds the votes on the questions at positions 0 to 4095, in the order of their arrival; `00000.jsonl.gz`
is the same file, packed. To pack or unpack a segment, the new file is written under a temporary name, flushed to disk
and renamed; only then is the old file removed. So if a crash leaves both files, both are complete.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any, BinaryIO

import msgspec

from medssr_dist.data.checksums import Damaged, LineChecker, seal_lines, warn_of_damage
from medssr_dist.data.jsonl import (
    JsonlLedger,
    cut_torn_tail,
    enumerate_rows,
    open_bytes,
    raise_if_disk_full,
    sync_folder,
)
from medssr_dist.data.private_files import open_private
from medssr_dist.data.records import Vote, parse_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import packed_vote_segment, vote_segment

logger = logging.getLogger(__name__)

SEGMENT_QUESTIONS = 4096  # per segment
_CHUNK = 2**20  # bytes
_GZIP_LEVEL = 5
_BAD_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
_encode = msgspec.json.Encoder().encode


def find_segment(position: int) -> int:
    """Return the number of the segment that holds the votes on the question at `position`."""
    return position // SEGMENT_QUESTIONS


def list_segments(folder: Path) -> list[int]:
    """Return the numbers of the segments in `folder`, packed or not, ascending; [] where there is no such folder."""
    names = (re.fullmatch(r"(\d+)\.jsonl(\.gz)?", file.name) for file in folder.glob("*"))
    return sorted({int(name[1]) for name in names if name})


def read_votes(folder: Path, number: int, on_damage: Callable[[Damaged], object] = warn_of_damage) -> Iterator[Vote]:
    """Yield the votes of a segment in the order of their arrival, also while its ledger is being written.

    Args:
        on_damage: called for each line that differs from its checksum; the vote is left out, and so is taken again.

    Raises:
        InputError: a line is not a vote, or the gzip file is not complete; file and line are named.
    """
    with _open(folder, number) as file:
        path = Path(file.name)
        try:
            for line, row in enumerate_rows(file, path, skip_torn=True, on_damage=on_damage):
                yield parse_record(Vote, row, f"{path} line {line}")
        except _BAD_GZIP as error:
            raise _make_gzip_error(path, error) from None


def count_votes(folder: Path, number: int) -> int:
    """Return the complete lines of a segment; 0 without a file. Raises InputError where a gzip file is not complete."""
    try:
        with _open(folder, number) as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
    except FileNotFoundError:
        return 0
    except _BAD_GZIP as error:
        raise _make_gzip_error(packed_vote_segment(folder, number), error) from None


def pack_segment(folder: Path, number: int) -> int:
    """Pack a segment, whatever files a crash has left of it; return the number of its votes.

    Raises:
        InputError: the disk is full (the plain file is kept), or there is only a gzip file and it is not complete.
    """
    plain, packed = vote_segment(folder, number), packed_vote_segment(folder, number)
    _keep_one_form(plain, packed)
    if not plain.exists():
        return count_votes(folder, number)
    cut_torn_tail(plain)
    votes = count_votes(folder, number)
    with (
        open(plain, "rb") as source,
        _write_atomically(packed) as target,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0) as file,
    ):
        shutil.copyfileobj(source, file, _CHUNK)
    plain.unlink()
    return votes


def remove_partial(folder: Path) -> None:
    """Remove the temporary files that a crash has left."""
    for file in folder.glob(".*.aside"):
        file.unlink()


class _KnownVote(msgspec.Struct, frozen=True, gc=False):
    """What is kept in memory of a vote. There are millions of them, so the garbage collector does not track them."""

    answer: str | None
    method: str | None
    tokens: int
    truncated: bool
    order: str
    paraphrase: int
    logprob: float | None
    text: str  # "" unless texts are held


class Segment:
    """The plain file of a segment: its votes of one policy and way of sampling, and the lines to be appended.

    A packed segment is unpacked when it is opened: labels were lost, and votes on its questions may follow.

    Raises:
        InputError: a line is not a vote, or the gzip file is not complete; file and line are named.
    """

    def __init__(self, folder: Path, number: int, policy: str, sampling: str, hold_text: bool = False):
        self._path = vote_segment(folder, number)
        self._file: JsonlLedger | None = None  # opened by the first write
        self._rows: list[bytes] = []
        self._seen: dict[str, dict[int, _KnownVote]] = defaultdict(dict)  # question -> seed -> vote
        self.policy, self.sampling, self._hold_text = policy, sampling, hold_text
        _unpack_segment(self._path, packed_vote_segment(folder, number))
        if cut_torn_tail(self._path):
            damaged: list[Damaged] = []
            for vote in read_votes(folder, number, damaged.append):
                if (vote.policy, vote.sampling) == (policy, sampling):
                    self._remember(vote)
            if damaged:
                _drop_damaged(self._path, damaged)

    def find_votes(self, question_id: str) -> dict[int, Vote]:
        """Return seed -> vote of the votes on a question; without the text, unless texts are held."""
        return {
            seed: Vote(
                question_id=question_id,
                policy=self.policy,
                sampling=self.sampling,
                seed=seed,
                answer=vote.answer,
                method=vote.method,
                text=vote.text,
                tokens=vote.tokens,
                truncated=vote.truncated,
                order=vote.order,
                paraphrase=vote.paraphrase,
                logprob=vote.logprob,
            )
            for seed, vote in self._seen.get(question_id, {}).items()
        }

    def forget(self, question_id: str) -> None:
        """Drop the votes on a question from memory."""
        self._seen.pop(question_id, None)

    def add(self, vote: Vote, keep_text: bool) -> bool:
        """Add a vote for the next `write`. Return False, without adding it, where a vote of its key is there."""
        if vote.seed in self._seen[vote.question_id]:
            return False
        self._remember(vote)
        row = {name: value for name, value in vars(vote).items() if name != "token_ids" or value is not None}
        self._rows.append(_encode_row(row if keep_text else row | {"text": ""}))
        return True

    def write(self) -> None:
        """Append the added votes to the file and flush it to disk. Raises InputError when the disk is full."""
        if self._rows:
            self._file = self._file or JsonlLedger(self._path)
            self._file.write(seal_lines(self._rows))
            self._rows.clear()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _remember(self, vote: Vote) -> None:
        """Keep a vote in little memory, usually without its text: a whole window of questions has its votes here."""
        self._seen[vote.question_id][vote.seed] = _KnownVote(
            vote.answer,
            vote.method and intern(vote.method),
            vote.tokens,
            vote.truncated,
            intern(vote.order),
            vote.paraphrase,
            vote.logprob,
            vote.text if self._hold_text else "",
        )


def _drop_damaged(path: Path, damaged: list[Damaged]) -> None:
    """Write the file anew without its damaged lines, so that they are neither counted nor packed."""
    logger.warning("%s; %d such lines are dropped, and their votes taken again", damaged[0], len(damaged))
    checker = LineChecker(path, on_damage=lambda error: None)
    with open(path, "rb") as source, _write_atomically(path) as target:
        target.writelines(line for line in source if checker.open(line) is not None)


def _encode_row(row: dict[str, Any]) -> bytes:
    try:
        return _encode(row)
    except UnicodeEncodeError:  # half a surrogate pair in a server's reply
        return _encode(row | {"text": row["text"].encode("utf-8", "replace").decode()})


def _open(folder: Path, number: int) -> BinaryIO | gzip.GzipFile:
    """Open the plain file or, where there is none, the gzip file: packing removes the plain file last."""
    try:
        return open_bytes(vote_segment(folder, number))
    except FileNotFoundError:
        return gzip.open(packed_vote_segment(folder, number), "rb")


def _make_gzip_error(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a whole gzip file ({error}); put a good copy in its place, or remove it")


def _unpack_segment(plain: Path, packed: Path) -> None:
    """Turn the packed file of a segment into its plain file."""
    _keep_one_form(plain, packed)
    if packed.exists():
        try:
            with gzip.open(packed, "rb") as source, _write_atomically(plain) as target:
                shutil.copyfileobj(source, target, _CHUNK)
        except _BAD_GZIP as error:
            raise _make_gzip_error(packed, error) from None
        packed.unlink()


def _keep_one_form(plain: Path, packed: Path) -> None:
    """Where a crash has left both files, keep the packed one if it can be read to its end, else the plain one."""
    if not (plain.exists() and packed.exists()):
        return
    try:
        with gzip.open(packed, "rb") as file:
            while file.read(_CHUNK):
                pass
    except _BAD_GZIP:
        packed.unlink()
    else:
        plain.unlink()


@contextmanager
def _write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` once it is complete and on disk, and removed on failure."""
    temporary = path.with_name(f".{path.name.split('.')[0]}.aside")
    try:
        temporary.unlink(missing_ok=True)
        with open(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise_if_disk_full(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
