"""Passages in JSONL files of any size (MedRAG's form), read by offset.

One scan checks every line and notes, per passage, where its line begins and a 64-bit hash of its id. The
notes (24 bytes a passage) are kept in the cache and mapped, not loaded; the files are never held in memory and
never read whole again. The scan is done again when a file's size or time has changed.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np

from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock, replace_file
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.runtime.cache import cache_dir


class _Line(msgspec.Struct):
    """The fields of a line that are used; MedRAG's `contents` is title and content once more."""

    id: str | int | None = None
    title: str | None = None
    content: str | None = None
    source: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True)
class _File:
    """A file of the corpus as it was when it was scanned."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def now(cls, path: Path) -> _File:
        stat = path.stat()
        return cls(str(path), stat.st_size, stat.st_mtime_ns)


class FileCorpus(Corpus):
    """The passages of one JSONL file, or of all *.jsonl files of a folder by name; `limit` takes the first N.

    A line's `source`, where it has one (MedQuAD), is put before its id: ids are unique within a source.

    Raises:
        InputError: absent or empty corpus, duplicate id, missing or empty field, not UTF-8, not JSON;
            names file and line.
    """

    def __init__(self, path: Path, limit: int = 0):
        self._files = [_File.now(file) for file in _corpus_files(path)]
        folder = cache_dir() / "corpus" / hash_content([str(path.resolve()), limit])
        with hold_lock(folder / "corpus"):
            facts = _stated(folder, self._files) or _scan(folder, self._files, limit)
        self.hash, self._count = facts["hash"], facts["count"]
        self._first_rows = np.array(facts["first_rows"])  # of each file
        table = np.memmap(folder / f"{self.hash}.i64", np.int64, mode="r", shape=(3, self._count))
        self._offsets, self._id_hashes, self._rows = table  # the last two by rising hash

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, item):
        rows = range(self._count)[item]
        return list(self._read(rows)) if isinstance(item, slice) else next(self._read([rows]))

    def __iter__(self) -> Iterator[Passage]:
        return self._read(range(self._count))

    def by_id(self, passage_id: str) -> Passage:
        key = _id_hash(passage_id)
        for place in range(*(self._id_hashes.searchsorted(key, side) for side in ("left", "right"))):
            passage = self[int(self._rows[place])]
            if passage.id == passage_id:
                return passage
        raise KeyError(passage_id)

    def _read(self, rows: Iterable[int]) -> Iterator[Passage]:
        """Passages of `rows`; neighbours are read from one open file."""
        for place, group in groupby(rows, key=self._file_of):
            with _open_unchanged(self._files[place]) as handle:
                for row in group:
                    handle.seek(self._offsets[row])
                    yield _parse(handle.readline(), self._files[place].path)

    def _file_of(self, row: int) -> int:
        return int(self._first_rows.searchsorted(row, "right")) - 1


def _corpus_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"knowledge.corpus {path} does not exist; check the path")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no *.jsonl files; give the folder of shards itself (MedRAG's chunk/) or a file")
    return files


def _stated(folder: Path, files: list[_File]) -> dict | None:
    """What an earlier scan noted, if the files are still as they were then."""
    if not (folder / "corpus.json").exists():
        return None
    facts = read_json(folder / "corpus.json")
    table = folder / f"{facts['hash']}.i64"
    unchanged = facts["files"] == [asdict(file) for file in files]
    return facts if unchanged and table.exists() and table.stat().st_size == 24 * facts["count"] else None


def _scan(folder: Path, files: list[_File], limit: int) -> dict:
    """Read and check all lines once; write what was found, and return it."""
    offsets, id_hashes, first_rows, digest = array("q"), array("q"), [], hashlib.sha256()
    for file, lines in _scanned_files(files):
        first_rows.append(len(offsets))
        digest.update(f"{Path(file.path).stem}\n".encode())
        for number, offset, line in lines:
            id_hashes.append(_id_hash(_parse(line, file.path, number).id))
            offsets.append(offset)
            digest.update(line.strip() + b"\n")
            if len(offsets) == limit:
                break
        if limit and len(offsets) == limit:
            break
    if not offsets:
        raise InputError(f"{files[0].path} holds no passages; each line needs id, title and content")
    rows = np.argsort(np.frombuffer(id_hashes, np.int64), kind="stable")
    id_hashes = np.frombuffer(id_hashes, np.int64)[rows]
    _refuse_duplicates(files, first_rows, offsets, id_hashes, rows)
    facts = {"hash": digest.hexdigest()[:16], "count": len(offsets), "first_rows": first_rows}
    return _write(folder, facts | {"files": [asdict(file) for file in files]}, [offsets, id_hashes, rows])


def _write(folder: Path, facts: dict, columns: list) -> dict:
    """The table of 64-bit columns, then corpus.json: its presence says that the table is whole."""
    table = folder / f"{facts['hash']}.i64"
    with replace_file(table) as temporary, open(temporary, "wb") as file:
        for column in columns:
            file.write(memoryview(column))
    write_json(folder / "corpus.json", facts)
    for stale in set(folder.glob("*.i64")) - {table}:
        stale.unlink()
    return facts


def _scanned_files(files: list[_File]) -> Iterator[tuple[_File, Iterator[tuple[int, int, bytes]]]]:
    """Each file with its lines, under one progress bar."""
    from tqdm import tqdm

    total = sum(file.size for file in files)
    with tqdm(total=total, desc="scan corpus", unit="B", unit_scale=True, disable=total < 10**7) as bar:
        for file in files:
            yield file, _lines(file, bar.update)


def _lines(file: _File, update: Callable[[int], object] = int) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, line) of the lines that are not blank."""
    offset = 0
    with _open_unchanged(file) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.isspace():
                yield number, offset, line
            offset += len(line)
            update(len(line))


def _open_unchanged(file: _File):
    try:
        handle = open(file.path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{file.path} cannot be read ({error.strerror}); check the path and its permissions") from None
    stat = os.fstat(handle.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        handle.close()
        raise InputError(f"{file.path} was changed while in use; leave the corpus alone and run the same command again")
    return handle


def _parse(line: bytes, file: str, number: int = 0) -> Passage:
    """The passage on a line. `number` is for messages; 0 = not known."""
    try:
        row = _decode(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{_where(file, number)} is not UTF-8 ({error.reason}); convert it, e.g. iconv") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{_where(file, number)}: {error}; each line is an object of id, title and content") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{_where(file, number)} is not JSON ({error}); repair or drop the line") from None
    name = "" if row.id is None else str(row.id).strip()
    content = (row.content or "").strip()
    if not (name and content):
        empty = " and no ".join(field for field, value in (("id", name), ("content", content)) if not value)
        raise InputError(f"{_where(file, number)} (id {name or None!r}): no {empty}; each line needs id and content")
    source = row.source or Path(file).stem
    return Passage(f"{source}:{name}" if row.source else name, (row.title or "").strip(), content, source)


def _where(file: str, number: int) -> str:
    return f"{file} line {number}" if number else str(file)


def _id_hash(passage_id: str) -> int:
    digest = hashlib.blake2b(passage_id.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _refuse_duplicates(files: list[_File], first_rows: list[int], offsets, id_hashes: np.ndarray, rows: np.ndarray):
    """Equal hashes are looked up: two ids may share one. Raises InputError naming both places."""
    for place in np.flatnonzero(id_hashes[1:] == id_hashes[:-1]):
        found = []
        for row in rows[place : place + 2]:
            file = files[int(np.searchsorted(first_rows, row, "right")) - 1]
            number, _, line = next(entry for entry in _lines(file) if entry[1] == offsets[row])
            found.append((_parse(line, file.path, number).id, _where(file.path, number)))
        if found[0][0] == found[1][0]:
            raise InputError(f"{found[1][1]}: id {found[1][0]!r} stands twice, first at {found[0][1]}; make ids unique")
