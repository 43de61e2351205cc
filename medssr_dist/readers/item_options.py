"""The options of a published item, in any of the forms that public data sets use.

- an object of letter (or number) -> text:      "options": {"A": "Retinol", "B": "Ascorbic acid"}
- a list of texts:                              "choices": ["Retinol", "Ascorbic acid"]
- a list of pairs:                              "options": [{"key": "A", "value": "Retinol"}, ...]
- two lists, as `datasets` stores pairs:        "choices": {"label": ["A", "B"], "text": ["Retinol", ...]}
- one of these as a text, of JSON or Python:    "options": "{\\"A\\": \\"Retinol\\", ...}", "['Retinol', ...]"
- a column each:                                "opa": "Retinol", "opb": ...; or "op1", "option_a", "choicesA", "A"
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medssr_dist.data.records import LETTERS
from medssr_dist.errors import InputError
from medssr_dist.sources.file_rows import parse_json

OPTION_HOLDERS = ("options", "choices", "answers")  # keys that hold all options of an item
_LABELS = ("key", "label", "letter", "aid", "id", "option")  # in a pair, the key of the letter or number
_TEXTS = ("value", "text", "atext", "content")  # in a pair, the key of the text
_COLUMN = re.compile(r"(|op|opt|options?|choices?|ending)_?(?:([A-Ja-j])|(\d{1,2}))")
_LONGEST_LITERAL = 20_000  # characters
_ALWAYS_THERE = 4  # options A-D have a text of their own; E and later may be empty in a table


@dataclass(frozen=True)
class ItemOptions:
    """The options of an item. Example: ItemOptions(texts=["x", "y"], labels=["1", "2"], holder="op1, op2").

    Attributes:
        labels: letters or numbers as the item gives them, [] for a bare list.
        holder: the key or keys that hold the options.
        left_out: labels without a text, at the end.
    """

    texts: list[str]
    labels: list[str]
    holder: str
    left_out: tuple[str, ...] = ()

    @property
    def are_bare_letters(self) -> bool:
        """Whether each text is its own letter, as in questions about the points A to E of a figure."""
        return self.texts == list(LETTERS[: len(self.texts)])


def is_option_column(key: str) -> bool:
    """Return whether a column may hold one option: 'opa', 'op1', 'option_a', 'ending0', 'A', but not '1'."""
    match = _COLUMN.fullmatch(key)
    return bool(match and (match.group(1) or match.group(2)))


def has_options(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has options in a key of their own or in columns."""
    return any(_is_holder(row, key) for key in OPTION_HOLDERS) or len(_find_columns(row)) > 1


def read_options(row: Mapping[str, Any]) -> ItemOptions:
    """Return the options of an item.

    An option without a text (null, or NaN as pandas writes it) is refused, except at the end: from E on, because a
    table has a column for the fifth option of some items, and, if null, in an object of options, where `datasets`
    fills in the letters that an item does not have.

    Raises:
        InputError: the options are not understood, or one is empty or missing.
    """
    holders = [key for key in OPTION_HOLDERS if _is_holder(row, key)]
    columns = _find_columns(row)
    if len(holders) > 1 or (holders and len(columns) > 1):
        found = [*holders, *columns]
        raise InputError(
            f"has options in {found[0]!r} and in {found[1]!r}; name one: `columns: {{options: {found[0]}}}`"
        )
    if holders:
        value = _open_text(holders[0], row[holders[0]])
        return _read_holder(holders[0], value)
    if len(columns) < 2:
        raise InputError("has no options: expected 'options', 'choices', or columns such as 'opa', 'opb'")
    pairs = [(_find_label(column), row[column]) for column in columns]
    return _make(", ".join(columns), pairs, is_struct=False)


def _is_holder(row: Mapping[str, Any], key: str) -> bool:
    """Return whether `key` holds options; `answers` may as well be the right ones, unless they are pairs."""
    value = row.get(key)
    if key != "answers":
        return key in row
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and _find_key(value, _TEXTS) is not None


def _find_columns(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of the one family of option columns that begins with the first letter, 0 or 1."""
    families: dict[str, list[str]] = {}
    for key in row:
        if is_option_column(key):
            families.setdefault(key.removesuffix(_find_label(key)), []).append(key)
    whole = [keys for keys in families.values() if len(keys) > 1]
    if len(whole) > 1:
        raise InputError(f"has options in {whole[0][0]!r} and in {whole[1][0]!r}; {_say_columns(whole[0])}")
    return whole[0] if whole else []


def _say_columns(columns: list[str]) -> str:
    return f"name one set of them: `columns: {{options: [{', '.join(columns)}]}}`"


def _find_label(column: str) -> str:
    match = _COLUMN.fullmatch(column)
    assert match
    return match.group(2) or match.group(3)


def _open_text(key: str, value: Any) -> Any:
    """Return the object or list that a text holds: as JSON, or as pandas writes it into CSV, such as "['x', 'y']"."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, f"the text of {key}")
    except InputError:
        try:
            literal = ast.literal_eval(value.strip()) if len(value) < _LONGEST_LITERAL else None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            literal = None
        if isinstance(literal, list | dict):
            return literal
        raise


def _read_holder(key: str, value: Any) -> ItemOptions:
    if isinstance(value, dict):
        labels, texts = _find_key(value, _LABELS), _find_key(value, _TEXTS)
        if labels and texts and len(value) == 2 and isinstance(value[texts], list):
            return _make(key, _zip_lists(key, value[labels], value[texts]), is_struct=False)
        return _make(key, list(value.items()), is_struct=True)
    if not isinstance(value, list):
        raise InputError(f"{key} must be an object of letter: text or a list, got {type(value).__name__}")
    if value and all(isinstance(item, dict) for item in value):
        return _make(key, [_read_pair(key, item) for item in value], is_struct=False)
    return _make_bare(key, value)


def _zip_lists(key: str, labels: Any, texts: list[Any]) -> list[tuple[Any, Any]]:
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise InputError(f"{key} has {len(texts)} texts, but not as many labels")
    return list(zip(labels, texts, strict=True))


def _read_pair(key: str, item: dict[str, Any]) -> tuple[Any, Any]:
    label, text = _find_key(item, _LABELS), _find_key(item, _TEXTS)
    if not label or not text or len(item) != 2:
        raise InputError(f"{key} has an item with the keys {list(item)[:6]}; expected two, such as 'key' and 'value'")
    return item[label], item[text]


def _find_key(item: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    return next((key for key in known if key in item), None)


def _make_bare(holder: str, values: list[Any]) -> ItemOptions:
    texts = [_read_option(LETTERS[index : index + 1] or str(index), value) for index, value in enumerate(values)]
    return _finish(texts, [], holder)


def _make(holder: str, pairs: list[tuple[Any, Any]], is_struct: bool) -> ItemOptions:
    """Return the options in the order of their labels, which must be consecutive letters or numbers."""
    labels = [str(label).strip().upper() for label, _ in pairs]
    order = sorted(range(len(pairs)), key=lambda place: (len(labels[place]), labels[place]))
    labels = [labels[place] for place in order]
    numbers = [[str(index + first) for index in range(len(labels))] for first in (0, 1)]
    if labels not in (list(LETTERS[: len(labels)]), *numbers):
        raise InputError(f"options must be lettered A, B, C... or numbered without a gap, got {labels}")
    values = [pairs[place][1] for place in order]
    keep = len(values)
    while keep > 2 and _may_be_absent(values[keep - 1], keep, is_struct):
        keep -= 1
    texts = [_read_option(label, value) for label, value in zip(labels[:keep], values[:keep], strict=True)]
    return _finish(texts, labels[:keep], holder, tuple(labels[keep:]))


def _finish(texts: list[str], labels: list[str], holder: str, left_out: tuple[str, ...] = ()) -> ItemOptions:
    if not 2 <= len(texts) <= len(LETTERS):
        raise InputError(f"a question needs 2-{len(LETTERS)} options, got {len(texts)}")
    return ItemOptions(_strip_labels(texts), labels, holder, left_out)


def _may_be_absent(value: Any, count: int, is_struct: bool) -> bool:
    return (is_absent(value) and count > _ALWAYS_THERE) or (value is None and is_struct)


def _read_option(label: str, value: Any) -> str:
    if is_absent(value):
        kind = "null" if value is None else "NaN (pandas reads texts such as 'None' and 'NA' as NaN)"
        raise InputError(f"{label!r} is missing or empty: option {label} is {kind}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"option {label} must be a text, got {type(value).__name__}")
    if not str(value).strip():
        raise InputError(f"{label!r} is missing or empty")
    return str(value).strip()


def is_absent(value: Any) -> bool:
    """Return whether `value` is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _strip_labels(texts: list[str]) -> list[str]:
    """Return the texts without their own letters, where all have them: ["A. x", "B. y"] -> ["x", "y"]."""
    lettered = zip(LETTERS, texts, strict=False)
    matches = [re.fullmatch(rf"\(?{letter}[.):]\s+(.+)", text, re.DOTALL) for letter, text in lettered]
    bare = [match.group(1) for match in matches if match]
    return bare if len(bare) == len(texts) else texts
