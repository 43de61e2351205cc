"""The items of a question file as JSON objects, whatever the kind and the shape of the file.

Kinds: JSON, JSONL, CSV, TSV, Parquet, Arrow, compressed or not. Shapes of JSON: JSONL, a list of objects, an object of
id -> item (PubMedQA), and columns, as pandas writes them: {"question": ["Q1", "Q2"], ...} or
{"question": {"0": "Q1", "1": "Q2"}, ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssr_dist.data.checksums import LineChecker, open_document
from medssr_dist.data.json_text import parse_json
from medssr_dist.errors import InputError
from medssr_dist.sources.file_bytes import find_kind, read_data_text, read_unpacked
from medssr_dist.sources.table_rows import Row, read_arrow, read_delimited, read_parquet

STEM_KEYS = ("question", "QUESTION", "qtext", "stem")
ID_KEY = "_item"  # key of an item in an object of id -> item


def read_rows(path: Path) -> list[Row]:
    """Return the items of the file, [] if it is empty.

    Raises:
        InputError: the file is absent or damaged, not UTF-8, not what its name says, or of another shape.
    """
    content = read_unpacked(path)
    kind = find_kind(path, content)
    if kind == "parquet":
        return read_parquet(path, content)
    if kind == "arrow":
        return read_arrow(path, content)
    text = read_data_text(path, content)
    if not text.strip():
        return []
    if kind != "json":
        return read_delimited(path, text, kind)
    return _read_json_rows(path, text)


def _read_json_rows(path: Path, text: str) -> list[Row]:
    if text.lstrip()[0] not in "{[" and not _is_json(text):
        raise InputError(
            f"{path} is neither JSON nor JSONL: it begins with {text.strip()[:20]!r}; name a table .csv or .tsv"
        )
    if _is_jsonl(text):
        checker = LineChecker(path)  # lines that this package has written end in a checksum
        lines = [(checker.open(line.encode()) or b"").decode() for line in text.split("\n")]
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        rows = [_parse_line(line, f"{path} line {number}") for number, line in numbered]
        return _open_object(path, rows[0]) if len(rows) == 1 else rows
    document = open_document(parse_json(text, str(path)), path)
    if isinstance(document, dict):
        return _open_object(path, document)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise InputError(f"{path} must be a JSON list of objects, or JSONL with one object per line")
    return document


def _parse_line(line: str, where: str) -> Row:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}, not a JSON object")
    return row


def _is_json(text: str) -> bool:
    try:
        parse_json(text, "")
    except InputError:
        return False
    return True


def _is_jsonl(text: str) -> bool:
    """Return whether the first non-blank line is a complete JSON object."""
    first = next(line for line in text.split("\n") if line.strip())
    try:
        return isinstance(parse_json(first, ""), dict)
    except InputError:
        return False


def _open_object(path: Path, document: Row) -> list[Row]:
    """Return the items of one JSON object: columns, an object of id -> item, one list of items, or one item."""
    if any(key in document for key in STEM_KEYS) and all(isinstance(part, list | dict) for part in document.values()):
        return _turn_columns(path, document)
    if _is_keyed(document):
        return [{ID_KEY: key, **item} for key, item in document.items()]
    lists = {key: part for key, part in document.items() if _is_list_of_items(part)}
    if len(lists) == 1 and not any(key in document for key in STEM_KEYS):
        return next(iter(lists.values()))  # {"version": 1, "data": [...]}
    are_sets = document and all(isinstance(part, dict) and part and _is_keyed(part) for part in document.values())
    if len(lists) > 1 or are_sets:
        raise InputError(
            f"{path} holds several data sets ({', '.join(map(str, list(document)[:12]))}); write each into a file of "
            "its own"
        )
    return [document]


def _is_list_of_items(part: object) -> bool:
    return isinstance(part, list) and bool(part) and _is_keyed(dict(enumerate(part)))


def _is_keyed(document: Mapping[Any, Any]) -> bool:
    return all(isinstance(item, dict) and any(key in item for key in STEM_KEYS) for item in document.values())


def _turn_columns(path: Path, columns: Row) -> list[Row]:
    """Return the rows of a table that is stored by column."""
    tables = {name: _index_column(column) for name, column in columns.items()}
    first = next(name for name in STEM_KEYS if name in tables)
    for name, table in tables.items():
        if list(table) != list(tables[first]):
            raise InputError(
                f"{path} is stored by column, but {name!r} has not the same rows as {first!r} "
                f"({len(table):,} and {len(tables[first]):,}); write it again, one object per row"
            )
    return [{name: table[index] for name, table in tables.items()} for index in tables[first]]


def _index_column(column: list[Any] | dict[str, Any]) -> dict[str, Any]:
    return column if isinstance(column, dict) else {str(index): value for index, value in enumerate(column)}
