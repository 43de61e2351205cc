"""A corpus that is no plain JSONL, as a JSONL file in the cache: tables, packed files, folders, data sets of the hub.

FileCorpus reads passages by their place in a file, for which a line must be a passage. What is of another kind is
written as such a file once, and again only if it has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from medssr_dist.config.synthesis import CorpusColumns, CorpusSource
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock, replace_file
from medssr_dist.knowledge.passages import Passage
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.sources.file_bytes import strip_suffixes
from medssr_dist.sources.source_rows import (
    SourcePlace,
    list_data_files,
    locate_source,
    refuse_several_kinds,
    stream_source_rows,
)

# Names under which published corpora have these columns, the likeliest first.
_NAMES = {
    "id": ("id", "_id", "docid", "doc_id", "passage_id", "pmid", "pubid"),
    "title": ("title",),
    "content": ("content", "text", "passage", "abstract", "contents"),
}
_JSONL = ".jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassageFiles:
    """A corpus as FileCorpus reads it.

    Example: PassageFiles(path=Path("/cache/corpus_copies/1f.../textbooks.jsonl"), where="MedRAG/textbooks")

    Attributes:
        path: a JSONL file, or a folder of such files.
        where: how messages name the corpus.
    """

    path: Path
    where: str


def locate_passages(source: CorpusSource) -> PassageFiles:
    """Return the files of a corpus: its own, or a copy in the cache, which is made if it is not there yet.

    Raises:
        InputError: the corpus is absent or damaged, or a row is no passage.
    """
    place = _locate(source)
    if plain := _find_plain(place, source):
        return PassageFiles(plain, place.where)
    settings = source.model_dump(exclude={"name", "share", "limit"})
    key = hash_content([str(place.path.resolve()), settings, _stat(place)])
    copy = make_cache_dir() / "corpus_copies" / key / (_name_file(place) + _JSONL)
    with hold_lock(copy):
        if not copy.exists():
            _log.info("%s is copied to %s, as lines", place.where, copy)
            with replace_file(copy) as temporary, open(temporary, "wb") as file:
                for passage in _stream(source, place.where):
                    file.write(msgspec.json.encode(passage) + b"\n")
    return PassageFiles(copy, place.where)


def sample_rows(source: CorpusSource, count: int) -> list[Passage] | None:
    """Return the first `count` passages of a corpus that needs a copy, without making one; None if it needs none.

    Raises:
        InputError: see `locate_passages`.
    """
    place = _locate(source)
    if _find_plain(place, source):
        return None
    rows = islice(_stream(source, place.where), count)
    return [Passage(row["id"], row["title"], row["content"], _name_file(place)) for row in rows]


def _locate(source: CorpusSource) -> SourcePlace:
    place = locate_source(source)
    if not place.path.exists():
        raise InputError(f"knowledge.corpora has {place.path}, which does not exist; check the path")
    return place


def _name_file(place: SourcePlace) -> str:
    """Return the name that becomes the `source` of the passages."""
    is_set = place.hub is not None and not place.hub.file
    return place.hub.repo.rpartition("/")[2] if place.hub and is_set else strip_suffixes(place.path.name)


def _find_plain(place: SourcePlace, source: CorpusSource) -> Path | None:
    """Return the file or folder that FileCorpus can read as it is: plain JSONL, or a folder of it (MedRAG's chunk/)."""
    if source.columns or source.split or source.subset:
        return None
    path = place.path
    if path.is_file():
        return path if _is_plain_jsonl(path) else None
    plain = next((folder for folder in (path, path / "chunk") if any(folder.glob(f"*{_JSONL}"))), None)
    if plain and not place.hub:
        refuse_several_kinds(list_data_files(plain, place.where), plain)
    return plain


def _is_plain_jsonl(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(8).removeprefix(b"\xef\xbb\xbf").lstrip()
    return path.suffix.lower() in (_JSONL, ".ndjson") and start[:1] in (b"{", b"")


def _stat(place: SourcePlace) -> list[list[Any]]:
    files = [place.path] if place.path.is_file() else list_data_files(place.path, place.where)
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _stream(source: CorpusSource, where: str) -> Iterator[dict[str, str]]:
    """Yield id, title, content and, where there is one, the source of each row."""
    rows = stream_source_rows(source)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{where} has no passages; it is empty")
    names = _choose_columns(first, source.columns or CorpusColumns(), where)
    for number, row in enumerate(chain([first], rows), start=1):
        passage = {role: _read_cell(row.get(name)) for role, name in names.items()}
        if missing := [role for role in ("id", "content") if not passage[role]]:
            which = f"{where} row {number} (id {passage['id'] or None!r})"
            raise InputError(f"{which} has no {' and no '.join(missing)}; give it one, or remove the row")
        if isinstance(source_name := row.get("source"), str) and source_name:
            passage["source"] = source_name
        yield passage


def _choose_columns(row: Mapping[str, Any], columns: CorpusColumns, where: str) -> dict[str, str]:
    """Return which column has id, title and content; "" for an absent title."""
    chosen = {}
    for role, known in _NAMES.items():
        wanted = getattr(columns, role)
        name = wanted if wanted in row else next((name for name in known if name in row and not wanted), "")
        if not name and (wanted or role != "title"):
            there = ", ".join(map(str, list(row)[:16]))
            raise InputError(
                f"{where} has no column {wanted or role!r}; its columns are {there}; name them, e.g. "
                "columns: {id: key, title: heading, content: text}"
            )
        chosen[role] = name
    return chosen


def _read_cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
