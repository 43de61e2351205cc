"""The items of a table: CSV and TSV with a header, Parquet and Arrow."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from medssr_dist.data.records import parse_record
from medssr_dist.errors import InputError

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]  # one item of a published file, as JSON
_DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}
_JSON_START = re.compile(r"\s*(\{|\[\s*\{)")
_EXCEL_DELIMITER = re.compile(r"sep=(.)\n")  # a first line, for Excel
_LONGEST_CELL = 2**26  # characters
_BATCH_ROWS = 1000


class _StoredFeatures(BaseModel):
    """Column -> its feature, in the form of `datasets`."""

    features: dict[str, dict[str, Any]] = {}


class _StoredSchema(BaseModel):
    """What `datasets` writes into the schema of a table."""

    info: _StoredFeatures = _StoredFeatures()


def read_delimited(path: Path, text: str, kind: str) -> list[Row]:
    """Return the rows of a CSV or TSV table. An empty cell is None; all other cells are texts.

    A .csv file may also be separated by semicolons or tabs, as spreadsheets write it: the first of , ; tab and | that
    its header has outside quotation marks, or what a first line `sep=;` says. A first column without a name, the row
    numbers that pandas writes, is left out.

    Args:
        kind: "csv" or "tsv".

    Raises:
        InputError: the header has a column twice or without a name, a row has another number of cells than the header,
            or a quotation mark is not closed.
    """
    if _JSON_START.match(text):
        raise InputError(f"{path} is named .{kind}, but begins like JSON; rename it to .json or .jsonl")
    reader = _open_table(text, kind)
    rows: list[Row] = []
    try:
        names = next(reader, [])
        _refuse_bad_header(path, names)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path} line {reader.line_num} has {len(cells)} cells, but the header has {len(names)}; a cell "
                    f"with {reader.dialect.delimiter!r} or a newline in it needs quotation marks"
                )
            rows.append({name: cell if cell != "" else None for name, cell in zip(names, cells, strict=True) if name})
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not valid {kind.upper()} ({error}); repair it") from None
    return rows


def _open_table(text: str, kind: str) -> Any:
    csv.field_size_limit(_LONGEST_CELL)
    if said := _EXCEL_DELIMITER.match(text):
        reader = csv.reader(io.StringIO(text), delimiter=said[1], strict=True)
        next(reader)
        return reader
    header = re.sub(r'"[^"]*"', "", text[: text.find("\n") + 1 or None])
    delimiter = next((mark for mark in _DELIMITERS[kind] if mark in header), _DELIMITERS[kind][0])
    return csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)


def _refuse_bad_header(path: Path, names: Sequence[str]) -> None:
    named = names[1:] if names[:1] == [""] else names
    wrong = next((name for name in named if not name.strip() or names.count(name) > 1), None)
    if wrong is not None:
        problem = f"has {wrong[:40]!r} twice" if wrong.strip() else "has a column without a name"
        raise InputError(f"{path}: its first line must name the columns, but {problem}; add a header, or repair it")


def read_parquet(path: Path, content: bytes) -> list[Row]:
    """Return the rows of a Parquet file. Raises InputError if it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        return list_table_rows(pyarrow.parquet.read_table(io.BytesIO(content)))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(_say_damaged(path, "Parquet", error)) from None


def read_arrow(path: Path, content: bytes) -> list[Row]:
    """Return the rows of an Arrow file or stream. Raises InputError if it is damaged."""
    import pyarrow

    is_file = content.startswith(b"ARROW1")
    opener = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    try:
        return list_table_rows(opener(io.BytesIO(content)).read_all())
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(_say_damaged(path, "Arrow", error)) from None


def stream_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, of which a part at a time is in memory. Raises InputError if it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(_BATCH_ROWS):
            yield from list_table_rows(pyarrow.Table.from_batches([batch], schema=file.schema_arrow))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(_say_damaged(path, "Parquet", error)) from None


def list_table_rows(table: pyarrow.Table) -> list[Row]:
    """Return the rows of an Arrow table; a class label of `datasets` becomes its name: 1 -> 'b'."""
    names = _find_class_names(table.schema.metadata or {})
    rows: list[Row] = table.to_pylist()
    for row in rows:
        for column, labels in names.items():
            if isinstance(number := row.get(column), int) and 0 <= number < len(labels):
                row[column] = labels[number]
    return rows


def _find_class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return column -> names of its classes, as `datasets` writes them into the schema of a table."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))
        features = parse_record(_StoredSchema, found, "the schema of a table").info.features
    except (ValueError, RecursionError, InputError):  # `datasets` has not written it
        return {}
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _say_damaged(path: Path, kind: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return f"{path} is {kind}, but damaged or cut off ({reason[:200]}); copy it again"
