"""A corpus in JSONL files of any size (MedRAG's format), whose passages are read by file offset.

One scan checks every line and records three 64-bit numbers per passage: the offset of its line, a hash of its id, and
the row that this hash belongs to. The table (24 bytes per passage) is kept in the cache and memory-mapped. The corpus
files are never loaded into memory, and are scanned again only if a file's size or modification time has changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import hash_content, read_record
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock, replace_file
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.runtime.cache import make_cache_dir


class _Line(msgspec.Struct):
    """The fields of a line that are used. (MedRAG's `contents` repeats title and content.)"""

    id: str | int | None = None
    title: str | None = None
    content: str | None = None
    source: str | None = None


logger = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(_Line).decode
_SCAN_FILE = "corpus.json"
_COLUMNS = 3  # of the table


@dataclass(frozen=True)
class _ScannedFile:
    """A file of the corpus with its size in bytes and its modification time when it was scanned."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _ScannedFile:
        stat = path.stat()
        return cls(str(path), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class _Scan:
    """Result of a scan, as in corpus.json.

    Attributes:
        hash: hash of file names and lines, in order.
        count: passages.
        first_rows: row of the first passage of each file.
    """

    hash: str
    count: int
    first_rows: list[int]
    files: list[_ScannedFile]

    def table(self, folder: Path) -> Path:
        """Return the file of the table: int64 (3, count), the offsets, the sorted id hashes and their rows."""
        return folder / f"{self.hash}.i64"


class FileCorpus(Corpus):
    """The first `limit` (0 = all) passages of a JSONL file, or of all *.jsonl files of a folder, by file name.

    If a line has a `source` (as in MedQuAD), the passage id is 'SOURCE:ID', because ids are unique within a source.

    Raises:
        InputError: the corpus is absent or empty, an id occurs twice, a field is missing or empty, or a line is not
            UTF-8 or not JSON; the message names file and line.
    """

    def __init__(self, path: Path, limit: int = 0):
        self._files = [_ScannedFile.of(file) for file in _list_files(path)]
        folder = make_cache_dir() / "corpus" / hash_content([str(path.resolve()), limit])
        with hold_lock(folder / "corpus"):
            scan = _read_scan(folder, self._files) or _scan_files(folder, self._files, limit)
        self.hash, self._count = scan.hash, scan.count
        self._first_rows = np.array(scan.first_rows)
        table = np.memmap(scan.table(folder), np.int64, mode="r", shape=(_COLUMNS, self._count))
        self._offsets, self._id_hashes, self._rows = table  # id hashes ascending, each with its row

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            return list(self._read(range(self._count)[item]))
        return next(self._read([range(self._count)[item]]))

    def __iter__(self) -> Iterator[Passage]:
        return self._read(range(self._count))

    def by_id(self, passage_id: str) -> Passage:
        key = _hash_id(passage_id)
        for place in range(*(self._id_hashes.searchsorted(key, side) for side in ("left", "right"))):
            passage: Passage = self[int(self._rows[place])]
            if passage.id == passage_id:
                return passage
        raise KeyError(passage_id)

    def _read(self, rows: Iterable[int]) -> Iterator[Passage]:
        """Yield the passages of `rows`; a file is opened once for consecutive rows in it."""
        for place, group in groupby(rows, key=self._find_file):
            with _open_unchanged(self._files[place]) as handle:
                for row in group:
                    handle.seek(self._offsets[row])
                    yield _parse(handle.readline(), self._files[place].path)

    def _find_file(self, row: int) -> int:
        return int(self._first_rows.searchsorted(row, "right")) - 1


def sample_file_passages(path: Path, count: int) -> list[Passage]:
    """Return the first `count` passages of a corpus, without a scan of the rest.

    Raises:
        InputError: the corpus is absent, or one of these lines is no passage.
    """
    lines = (
        _parse(line, file.path, number)
        for file in map(_ScannedFile.of, _list_files(path))
        for number, _, line in _read_lines(file)
    )
    return list(islice(lines, count))


def _list_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"knowledge.corpora has {path}, which does not exist; check the path")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} has no *.jsonl files; give the folder that contains them (MedRAG's chunk/) or a file")
    return files


def _read_scan(folder: Path, files: list[_ScannedFile]) -> _Scan | None:
    """Return the result of an earlier scan, or None if a file has changed since or the table is not complete."""
    if not (folder / _SCAN_FILE).exists():
        return None
    try:
        scan = read_record(_Scan, folder / _SCAN_FILE)
    except InputError as error:
        logger.warning("%s; the corpus is read anew", error)
        return None
    table = scan.table(folder)
    is_complete = table.exists() and table.stat().st_size == 8 * _COLUMNS * scan.count
    return scan if scan.files == files and is_complete else None


def _scan_files(folder: Path, files: list[_ScannedFile], limit: int) -> _Scan:
    """Read and check all lines once; write the table and the result of the scan to `folder`."""
    offsets, id_hashes, digest = array("q"), array("q"), hashlib.sha256()
    first_rows: list[int] = []
    for file, lines in _iterate_files(files):
        first_rows.append(len(offsets))
        digest.update(f"{Path(file.path).stem}\n".encode())
        for number, offset, line in lines:
            id_hashes.append(_hash_id(_parse(line, file.path, number).id))
            offsets.append(offset)
            digest.update(line.strip() + b"\n")
            if len(offsets) == limit:
                break
        if limit and len(offsets) == limit:
            break
    if not offsets:
        raise InputError(f"{files[0].path} has no passages; each line needs id, title and content")
    hashes = np.frombuffer(id_hashes, np.int64)
    rows = np.argsort(hashes, kind="stable")
    hashes = hashes[rows]
    _refuse_duplicates(files, first_rows, offsets, hashes, rows)
    scan = _Scan(digest.hexdigest()[:16], len(offsets), first_rows, files)
    _write_scan(folder, scan, [offsets, hashes, rows])
    return scan


def _write_scan(folder: Path, scan: _Scan, columns: list[array[int] | np.ndarray]) -> None:
    """Write the table of 64-bit columns and then corpus.json, which exists only next to a complete table."""
    table = scan.table(folder)
    with replace_file(table) as temporary, open(temporary, "wb") as file:
        for column in columns:
            file.write(memoryview(column))
    write_json(folder / _SCAN_FILE, asdict(scan))
    for stale in set(folder.glob("*.i64")) - {table}:
        stale.unlink()


def _iterate_files(files: list[_ScannedFile]) -> Iterator[tuple[_ScannedFile, Iterator[tuple[int, int, bytes]]]]:
    """Yield each file with its lines, with one progress bar for all."""
    from medssr_dist.runtime.progress_bar import ProgressBar

    total = sum(file.size for file in files)
    with ProgressBar(total=total, desc="scan corpus", unit="B", unit_scale=True, disable=total < 10**7) as bar:
        for file in files:
            yield file, _read_lines(file, bar.update)


def _read_lines(file: _ScannedFile, update: Callable[[int], object] = int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, offset in bytes, line) for every line that is not blank; a byte order mark is skipped."""
    with _open_unchanged(file) as handle:
        offset = len(BOM_UTF8) if handle.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        handle.seek(offset)
        for number, line in enumerate(handle, start=1):
            if not line.isspace():
                yield number, offset, line
            offset += len(line)
            update(len(line))


def _open_unchanged(file: _ScannedFile) -> BinaryIO:
    """Open the file. Raises InputError if it cannot be read or has changed since the scan."""
    try:
        handle = open(file.path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{file.path} cannot be read ({error.strerror}); check the path and its permissions") from None
    stat = os.fstat(handle.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        handle.close()
        raise InputError(
            f"{file.path} was changed while in use; leave the corpus unchanged and run the same command again"
        )
    return handle


def _parse(line: bytes, file: str, number: int = 0) -> Passage:
    """Return the passage of a line. `number` is the line number for messages, 0 if unknown."""
    try:
        row = _decode(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{_locate(file, number)} is not UTF-8 ({error.reason}); convert it, e.g. iconv") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{_locate(file, number)}: {error}; each line is an object with id, title, content") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{_locate(file, number)} is not JSON ({error}); repair or remove the line") from None
    name = "" if row.id is None else str(row.id).strip()
    content = (row.content or "").strip()
    if not (name and content):
        empty = " and no ".join(field for field, value in (("id", name), ("content", content)) if not value)
        raise InputError(f"{_locate(file, number)} (id {name or None!r}): no {empty}; each line needs id and content")
    source = row.source or Path(file).stem
    return Passage(f"{source}:{name}" if row.source else name, (row.title or "").strip(), content, source)


def _locate(file: str, number: int) -> str:
    return f"{file} line {number}" if number else str(file)


def _hash_id(passage_id: str) -> int:
    digest = hashlib.blake2b(passage_id.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _refuse_duplicates(
    files: list[_ScannedFile], first_rows: list[int], offsets: array[int], id_hashes: np.ndarray, rows: np.ndarray
) -> None:
    """Raise InputError, with both places, if an id occurs twice. Only ids with equal hashes are compared."""
    for place in np.flatnonzero(id_hashes[1:] == id_hashes[:-1]):
        ids, places = [], []
        for row in rows[place : place + 2]:
            file = files[int(np.searchsorted(first_rows, row, "right")) - 1]
            number, _, line = next(entry for entry in _read_lines(file) if entry[1] == offsets[row])
            ids.append(_parse(line, file.path, number).id)
            places.append(_locate(file.path, number))
        if ids[0] == ids[1]:
            raise InputError(f"{places[1]}: id {ids[0]!r} occurs twice, first at {places[0]}; make ids unique")
