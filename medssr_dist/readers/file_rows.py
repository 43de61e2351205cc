"""The items of a question file as JSON objects, whatever the shape of the file.

Shapes: JSONL, a list of objects, an object of id -> item (PubMedQA), and columns, as pandas writes them:
{"question": ["Q1", "Q2"], ...} or {"question": {"0": "Q1", "1": "Q2"}, ...}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssr_dist.data.jsonl import read_text
from medssr_dist.errors import InputError

Row = dict[str, Any]  # one item of a published file, as JSON
STEM_KEYS = ("question", "QUESTION", "qtext", "stem")
ID_KEY = "_item"  # key of an item in an object of id -> item
_TABLES = {".csv": "CSV", ".tsv": "TSV", ".xlsx": "Excel", ".parquet": "Parquet", ".arrow": "Arrow"}


def read_rows(path: Path) -> list[Row]:
    """Return the items of the file, [] if it is empty.

    Raises:
        InputError: the file is absent or not UTF-8, not JSON, or of another shape.
    """
    if kind := _TABLES.get(path.suffix.lower()):
        raise InputError(f"{path} is {kind}; write it as JSONL, e.g. with pandas: {_say_conversion(path)}")
    text = read_text(path)
    if not text.strip():
        return []
    if _is_jsonl(text):
        numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        rows = [_parse_line(line, f"{path} line {number}") for number, line in numbered]
        return _open_object(path, rows[0]) if len(rows) == 1 else rows
    document = parse_json(text, str(path))
    if isinstance(document, dict):
        return _open_object(path, document)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise InputError(f"{path} must be a JSON list of objects, or JSONL with one object per line")
    return document


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Args:
        where: the place of the text, for the message.

    Raises:
        InputError: it is not JSON, has a key twice in one object, is too deep, or has a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}: " if "\n" in text else ""
        reason = f"{place}{error.msg}"
    except ValueError as error:
        reason = str(error).split(";")[0]
    except RecursionError:
        reason = "its lists and objects are nested too deep"
    raise InputError(f"{where} is not valid JSON ({reason}); repair or replace it")


def _make_object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)[:40]!r} twice")
    return row


def _parse_line(line: str, where: str) -> Row:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}, not a JSON object")
    return row


def _say_conversion(path: Path) -> str:
    reader = {".csv": "read_csv", ".tsv": "read_table", ".xlsx": "read_excel", ".parquet": "read_parquet"}
    call = reader.get(path.suffix.lower(), "read_feather")
    return f"pandas.{call}({path.name!r}).to_json({path.stem + '.jsonl'!r}, orient='records', lines=True)"


def _is_jsonl(text: str) -> bool:
    """Return whether the first non-blank line is a complete JSON object."""
    first = next(line for line in text.split("\n") if line.strip())
    try:
        return isinstance(parse_json(first, ""), dict)
    except InputError:
        return False


def _open_object(path: Path, document: Row) -> list[Row]:
    """Return the items of one JSON object: columns, an object of id -> item, or one item."""
    if any(key in document for key in STEM_KEYS) and all(isinstance(part, list | dict) for part in document.values()):
        return _turn_columns(path, document)
    if _is_keyed(document):
        return [{ID_KEY: key, **item} for key, item in document.items()]
    if document and all(isinstance(part, dict) and part and _is_keyed(part) for part in document.values()):
        raise InputError(
            f"{path} holds several data sets ({', '.join(map(str, list(document)[:12]))}); write each into a file of "
            "its own"
        )
    return [document]


def _is_keyed(document: Mapping[str, Any]) -> bool:
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
