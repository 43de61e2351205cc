"""Votes on disk, by segments of 4096 questions: plain JSONL while votes come in, gzip once all have their label.

`00000.jsonl` holds the votes on the questions at positions 0 to 4095, in the order in which they came;
`00000.jsonl.gz` is the same, packed. A file is packed or unpacked aside, flushed to disk, renamed, and only
then is the other form removed: where a crash leaves both, each is whole.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import BinaryIO

import msgspec

from medssr_dist.data.jsonl import JsonlLedger, cut_torn_tail, enumerate_rows, raise_if_disk_full, sync_folder
from medssr_dist.data.records import Vote, parse_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import packed_vote_segment, vote_segment

SEGMENT_QUESTIONS = 4096  # questions
_CHUNK = 2**20  # bytes
_GZIP_LEVEL = 5
_BAD_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
_encode = msgspec.json.Encoder().encode


def segment_number(position: int) -> int:
    """Number of the segment that holds the votes on the question at `position`."""
    return position // SEGMENT_QUESTIONS


def list_segments(folder: Path) -> list[int]:
    """Numbers of the segments in `folder`, in either form, ascending; none where there is no such folder."""
    names = (re.fullmatch(r"(\d+)\.jsonl(\.gz)?", file.name) for file in folder.glob("*"))
    return sorted({int(name[1]) for name in names if name})


def read_votes(folder: Path, number: int) -> Iterator[Vote]:
    """The votes of one segment in the order in which they came, also while its ledger is being written.

    Raises:
        InputError: naming file and line, where a line is not a vote or the gzip file is not whole.
    """
    with _open(folder, number) as file:
        path = Path(file.name)
        try:
            for line, row in enumerate_rows(file, path, skip_torn=True):
                yield parse_record(Vote, row, f"{path} line {line}")
        except _BAD_GZIP as error:
            raise _not_whole(path, error) from None


def count_votes(folder: Path, number: int) -> int:
    """Whole lines of a segment; 0 where it is not there. Raises InputError where the gzip file is not whole."""
    try:
        with _open(folder, number) as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
    except FileNotFoundError:
        return 0
    except _BAD_GZIP as error:
        raise _not_whole(packed_vote_segment(folder, number), error) from None


def pack_segment(folder: Path, number: int) -> int:
    """Bring a segment into its packed form, from whatever a crash has left. Returns its votes.

    Raises:
        InputError: the disk is full (the plain form stands), or the packed form is not whole and alone.
    """
    plain, packed = vote_segment(folder, number), packed_vote_segment(folder, number)
    _settle(plain, packed)
    if not plain.exists():
        return count_votes(folder, number)
    cut_torn_tail(plain)
    votes = count_votes(folder, number)
    with (
        open(plain, "rb") as source,
        _written_aside(packed) as target,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0) as file,
    ):
        shutil.copyfileobj(source, file, _CHUNK)
    plain.unlink()
    return votes


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left half written beside its place."""
    for file in folder.glob(".*.aside"):
        file.unlink()


class Segment:
    """One segment in its plain form: what it holds of one policy and sampling, and what is to be appended.

    Raises:
        InputError: naming file and line, where a line is not a vote or the gzip file is not whole.
    """

    def __init__(self, folder: Path, number: int, policy: str, sampling: str):
        self._path = vote_segment(folder, number)
        self._file: JsonlLedger | None = None  # opened when there is something to write
        self._lines: list[bytes] = []
        self._seen: dict[str, dict[int, tuple]] = defaultdict(dict)
        self.policy, self.sampling = policy, sampling
        _unpack(self._path, packed_vote_segment(folder, number))
        if cut_torn_tail(self._path):
            for vote in read_votes(folder, number):
                if (vote.policy, vote.sampling) == (policy, sampling):
                    self._remember(vote)

    def votes(self, question_id: str) -> dict[int, Vote]:
        """Seed -> vote without its text, of those taken on a question."""
        common = {"question_id": question_id, "policy": self.policy, "sampling": self.sampling, "text": ""}
        return {
            seed: Vote(seed=seed, answer=answer, method=method, tokens=tokens, truncated=truncated, **common)
            for seed, (answer, method, tokens, truncated) in self._seen.get(question_id, {}).items()
        }

    def forget(self, question_id: str) -> None:
        self._seen.pop(question_id, None)

    def add(self, vote: Vote, keep_text: bool) -> bool:
        """Take a vote to be written, unless one of its key is there. Returns whether it was taken."""
        if vote.seed in self._seen[vote.question_id]:
            return False
        self._remember(vote)
        self._lines.append(_line(vars(vote) if keep_text else vars(vote) | {"text": ""}))
        return True

    def write(self) -> None:
        """Append what was taken, and flush it to disk. Raises InputError when the disk is full."""
        if self._lines:
            self._file = self._file or JsonlLedger(self._path)
            self._file.write(b"".join(self._lines))
            self._lines.clear()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _remember(self, vote: Vote) -> None:
        """Without its text, and small: a window of 16384 questions with 16 votes each is in memory."""
        method = vote.method and intern(vote.method)
        self._seen[vote.question_id][vote.seed] = (vote.answer, method, vote.tokens, vote.truncated)


def _line(row: dict) -> bytes:
    try:
        return _encode(row) + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in a server's reply must not lose the vote
        return _encode(row | {"text": row["text"].encode("utf-8", "replace").decode()}) + b"\n"


def _open(folder: Path, number: int) -> BinaryIO:
    """The plain form if it is there; who packs it removes it last, so that the other one is there if it is not."""
    try:
        return open(vote_segment(folder, number), "rb")
    except FileNotFoundError:
        return gzip.open(packed_vote_segment(folder, number), "rb")


def _not_whole(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a whole gzip file ({error}); put a good copy in its place, or remove it")


def _unpack(plain: Path, packed: Path) -> None:
    """Bring a segment into its plain form: labels were lost, and votes on its questions may follow."""
    _settle(plain, packed)
    if packed.exists():
        try:
            with gzip.open(packed, "rb") as source, _written_aside(plain) as target:
                shutil.copyfileobj(source, target, _CHUNK)
        except _BAD_GZIP as error:
            raise _not_whole(packed, error) from None
        packed.unlink()


def _settle(plain: Path, packed: Path) -> None:
    """Leave one form where a crash left both: the packed one if it is whole, which it is read through to know."""
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
def _written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole and on disk; nothing of it stays where that fails."""
    aside = path.with_name(f".{path.name.split('.')[0]}.aside")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise_if_disk_full(error, path)
        raise
    finally:
        aside.unlink(missing_ok=True)
