"""Rows in the form that the formats know: by the columns that a user names, and out of known wrappings.

`columns: {question: stem, answer: key}` moves the value of each named column to the key that the formats know, and
removes what could be taken for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medssr_dist.config.base import Columns
from medssr_dist.data.records import LETTERS
from medssr_dist.errors import InputError
from medssr_dist.readers.item_answers import ANSWER_KEYS, is_unknown
from medssr_dist.readers.item_options import OPTION_HOLDERS, is_option_column
from medssr_dist.sources.file_rows import ID_KEY, STEM_KEYS
from medssr_dist.sources.table_rows import Row

ID_KEYS = ("id", "pmid", "pubid", "question_id", "unique_id", ID_KEY)
TOPIC_KEYS = ("subject_name", "subject", "category", "body_system", "meta_info")
_ROLES = ("question", "answer", "rare", "topic", "id")
_NOTHING = object()
_KNOWN = (*reversed(STEM_KEYS), *OPTION_HOLDERS, *ANSWER_KEYS, *ID_KEYS[:-1], *TOPIC_KEYS)
_SPELLINGS = {  # known keys by their letters and digits; not the short ones of single data sets, 'ra' and 'cop'
    re.sub(r"[\W_]+", "", key).lower(): key for key in _KNOWN if len(key) > 3 or key == "id"
}


def unwrap_row(row: Row) -> Row:
    """Return a row out of the wrappings of known data sets.

    - openlifescienceai/medqa and its sisters: {"data": {"Question": ..., "Options": {...}, "Correct Option": "B"}};
    - MedQA in the form of SWAG: sent1 and sent2 are the two parts of the stem, ending0 to ending3 the options;
    - known keys in another spelling: 'Question' is question, 'Option A' option_a, 'Correct Answer' correct_answer.
    """
    inner = row.get("data")
    if isinstance(inner, dict) and "Question" in inner:
        return {key: value for key, value in row.items() if key != "data"} | _respell(inner)
    if "sent1" in row and "ending0" in row and "question" not in row:
        stem = " ".join(part for part in (row["sent1"], row.get("sent2")) if isinstance(part, str) and part)
        return {key: value for key, value in row.items() if key not in ("sent1", "sent2")} | {"question": stem}
    return _respell(row)


def _respell(row: Row) -> Row:
    """Return a row with the known spelling of each key that is one but for case, spaces and other marks.

    A key stays as it is where the row has the known one too, or two keys could be it.
    """
    found: dict[str, list[str]] = {}
    for key in row:
        if key not in _KNOWN and not is_option_column(key):
            plain = re.sub(r"[\W_]+", "", key).lower()
            known = _SPELLINGS.get(plain, plain if is_option_column(plain) else "")
            if known and known not in row:
                found.setdefault(known, []).append(key)
    renamed = {keys[0]: known for known, keys in found.items() if len(keys) == 1}
    return {renamed.get(key, key): value for key, value in row.items()} if renamed else row


def apply_columns(rows: Sequence[Row], columns: Columns) -> list[Row]:
    """Return the rows with the columns that the user names under the keys that the formats know.

    Raises:
        InputError: no row has a named column.
    """
    options = [columns.options] if isinstance(columns.options, str) else columns.options
    for role, name in [("options", name) for name in options] + [(role, getattr(columns, role)) for role in _ROLES]:
        if name and not any(has_column(row, name) for row in rows):
            there = ", ".join(map(str, list(rows[0])[:16]))
            raise InputError(f"has no column {name!r}, which columns.{role} names; its columns are {there}")
    if len(options) > len(LETTERS):
        raise InputError(f"has at most {len(LETTERS)} options; columns.options names {len(options)} columns")
    return [_apply(row, columns) for row in rows]


def _apply(row: Row, columns: Columns) -> Row:
    taken: Row = {}
    gone: set[str] = set()
    if columns.question:
        taken["question"] = get_column(row, columns.question)
        gone |= {*STEM_KEYS, columns.question}
    if columns.options:
        taken |= _take_options(row, columns.options)
        gone |= {key for key in row if key in OPTION_HOLDERS or is_option_column(key)}
    if columns.answer:
        answer = get_column(row, columns.answer)
        taken["answer"] = answer if columns.answer_from is None else _to_letter(answer, columns.answer_from)
        gone |= {*ANSWER_KEYS, columns.answer}
    if columns.topic:
        taken["subject_name"] = get_column(row, columns.topic)
        gone |= set(TOPIC_KEYS)
    if columns.id:
        taken["id"] = get_column(row, columns.id)
        gone |= set(ID_KEYS)
    return {key: value for key, value in row.items() if key not in gone} | taken


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column; a dot goes into an object."""
    return get_column(row, column, _NOTHING) is not _NOTHING


def get_column(row: Mapping[str, Any], column: str, default: Any = None) -> Any:
    """Return the value of a column, `default` if the row does not have it; a dot goes into an object."""
    value: Any = row
    for part in (column,) if column in row else column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _take_options(row: Row, names: str | list[str]) -> Row:
    if isinstance(names, str):
        return {"options": get_column(row, names)}
    return {f"option_{letter}": get_column(row, name) for letter, name in zip(LETTERS, names, strict=False)}


def _to_letter(value: Any, first: int) -> Any:
    """Return the letter of option number `value`, counted from `first`; what is no such number is no option either."""
    if is_unknown(value):
        return value
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    place = int(text) - first if re.fullmatch(r"\d{1,2}", text) else -1
    return LETTERS[place] if 0 <= place < len(LETTERS) else f"number {text}, counted from {first}"
