"""The right answer of a published item: a letter, the text of an option, or a number.

A number may count from 0 or from 1, and a wrong guess would shift every answer. What decides is, in this order: the
options' own numbers, other answer fields of the same items, the values in the whole file (a 0 cannot count from 1, nor
the number of options from 0), and the known form (MMLU and MMLU-Pro count from 0). Otherwise the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medssr_dist.data.records import LETTERS
from medssr_dist.errors import InputError
from medssr_dist.readers.item_options import ItemOptions, is_absent

# Keys of the right answer; the later ones are asked only for the items that the earlier ones leave open.
ANSWER_KEYS = (
    "answer_idx",
    "answer",
    "gold",
    "label",
    "answerKey",
    "answer_key",
    "answer_index",
    "correct_option",
    "correct_answer",
    "cop",
    "ra",
)
_FROM_ZERO = {("choices", "answer"), ("options", "answer_index")}  # MMLU, MMLU-Pro: key of options, key of the answer
_ANSWER_LIKE = re.compile(r"ans|correct|right|label|gold|target|truth|solution|key", re.IGNORECASE)
_UNKNOWN_NUMBER = -1  # test splits on the Hugging Face hub have it in place of the answer
_LETTER = re.compile(r"\(?([A-Ja-j])[.):]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-J])[.):]\s+(.+)", re.DOTALL)


@dataclass(frozen=True)
class Item:
    """An item and its options. Example: Item({"question": "Q", "answer": 0}, ItemOptions(...))."""

    row: Mapping[str, Any]
    options: ItemOptions


@dataclass(frozen=True)
class AnswerReader:
    """Reads the answers of one file. Build it with `learn`, from all of its items.

    Attributes:
        lettered: keys whose values are letters in the whole file.
        numbered: keys whose values are numbers in the whole file.
        first_numbers: key of `numbered` -> what the number of option A is, 0 or 1.
        open_numbers: key of `numbered` -> why it is not known whether its numbers count from 0 or 1.
    """

    lettered: frozenset[str] = frozenset()
    numbered: frozenset[str] = frozenset()
    first_numbers: dict[str, int] = field(default_factory=dict)
    open_numbers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def learn(cls, items: Sequence[Item]) -> AnswerReader:
        """Find out what the answers of a file are: which keys hold letters or numbers, and what these count from."""
        lettered = frozenset(key for key in ANSWER_KEYS if _all_given(items, key, _is_letter))
        numbered = frozenset(key for key in ANSWER_KEYS if _all_given(items, key, _is_number))
        first_numbers, open_numbers = {}, {}
        for key in numbered:
            counted = [item for item in items if not is_unknown(item.row.get(key)) and not _has_numbers(item.options)]
            trials = (cls(lettered, numbered, {key: first}) for first in (0, 1))
            fitting = [trial.first_numbers[key] for trial in trials if trial._fits(counted, key)]
            if 0 in fitting and any((item.options.holder, key) in _FROM_ZERO for item in counted):
                fitting = [0]
            if len(fitting) == 1:
                first_numbers[key] = fitting[0]
            elif counted:
                open_numbers[key] = _explain_open(counted, key, bool(fitting))
        return cls(lettered, numbered, first_numbers, open_numbers)

    def read(self, item: Item) -> str | None:
        """Return the letter of the right answer, or None if the item gives none.

        Raises:
            InputError: a value is no option, may mean two options, or two values mean different options.
        """
        found: dict[str, int] = {}
        unclear: list[str] = []
        for key in _list_given(item):
            places = self._find_places(item, key)
            if len(places) == 1:
                found[key] = places.pop()
            elif not places and _is_long_text(item.row[key]):
                unclear.append(key)  # an explanation beside the letter, as some data sets have it
            else:
                raise InputError(_explain_value(item, key, bool(places)))
        if unclear and not found:
            raise InputError(_explain_value(item, unclear[0], False))
        if len(set(found.values())) > 1:
            values = " and ".join(f"{key} = {item.row[key]!r}" for key in found)
            fix = f"if one of them is not the answer, name the other: `columns: {{answer: {next(iter(found))}}}`"
            raise InputError(f"has answers that contradict each other: {values}; {fix}")
        return LETTERS[next(iter(found.values()))] if found else None

    def _find_places(self, item: Item, key: str) -> set[int]:
        """Return the places of the options that the value of `key` may mean."""
        value, options = _unwrap(item.row[key]), item.options
        texts = _find_text(options, value)
        if _is_number(options, value):
            if key not in self.numbered:
                return texts
            places = self._find_numbered(options, key, int(value))
            return places | texts if isinstance(value, str) else places
        letter = _find_letter(options, value)
        if key in self.lettered and letter:
            return letter
        return texts or letter or _find_lettered_text(options, value)

    def _find_numbered(self, options: ItemOptions, key: str, number: int) -> set[int]:
        if _has_numbers(options):
            return {place for place, label in enumerate(options.labels) if int(label) == number}
        if key in self.open_numbers:
            raise InputError(self.open_numbers[key])
        return {number - self.first_numbers[key]} & set(range(len(options.texts)))

    def _fits(self, items: Iterable[Item], key: str) -> bool:
        """Return whether the numbers under `key` are options of all items, the same as those of other fields."""
        for item in items:
            places = self._find_places(item, key)
            others = [self._find_places(item, other) for other in _list_given(item) if other not in self.numbered]
            if len(places) != 1 or any(len(other) == 1 and other != places for other in others):
                return False
        return True


def is_unknown(value: Any) -> bool:
    """Return whether a data set writes `value` where it does not give the answer."""
    return is_absent(value) or value in ("", [], _UNKNOWN_NUMBER, str(_UNKNOWN_NUMBER))


def refuse_unread_answers(items: Sequence[Item]) -> None:
    """Refuse a file without a known key of an answer that has one under another key, lest its answers be lost.

    Raises:
        InputError: the values of an unknown key are the letter or the text of an option in all items.
    """
    if any(_list_given(item) for item in items):
        return
    for key in dict.fromkeys(key for item in items for key in item.row if key not in item.options.holder.split(", ")):
        if _all_given(items, key, partial(_may_be_answer, key)):
            value = next(item.row[key] for item in items if not is_unknown(item.row.get(key)))
            raise InputError(
                f"has no answer under a known key ({', '.join(ANSWER_KEYS)}), but {key!r} seems to hold it "
                f"({value!r}); name it: `columns: {{answer: {key}}}`"
            )


def _may_be_answer(key: str, options: ItemOptions, value: Any) -> bool:
    """Return whether `value` is an option's text or, under a key that sounds like an answer, its letter or number."""
    if _find_text(options, value) or _find_lettered_text(options, value):
        return True
    is_short = _is_letter(options, value) or (_is_number(options, value) and 0 <= int(value) <= len(options.texts))
    return is_short and _ANSWER_LIKE.search(key) is not None


def _list_given(item: Item) -> list[str]:
    return [key for key in ANSWER_KEYS if not is_unknown(item.row.get(key))]


def _all_given(items: Iterable[Item], key: str, holds: Callable[[ItemOptions, Any], bool]) -> bool:
    """Return whether `holds` is true of all values of `key` that are given, and there is one."""
    given = [item for item in items if not is_unknown(item.row.get(key))]
    return bool(given) and all(holds(item.options, _unwrap(item.row[key])) for item in given)


def _unwrap(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_letter(options: ItemOptions, value: Any) -> bool:
    return bool(_find_letter(options, value))


def _is_number(options: ItemOptions, value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d{1,2}", value.strip()) is not None
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _has_numbers(options: ItemOptions) -> bool:
    """Return whether the options have numbers of their own."""
    return bool(options.labels) and options.labels[0].isdigit()


def _find_letter(options: ItemOptions, value: Any) -> set[int]:
    match = _LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    place = LETTERS.index(match.group(1).upper()) if match else len(options.texts)
    return {place} & set(range(len(options.texts)))


def _find_text(options: ItemOptions, value: Any) -> set[int]:
    """Return the places of the options with this text; equal options give several."""
    wanted = " ".join(str(value).split()).casefold()
    return {place for place, text in enumerate(options.texts) if " ".join(text.split()).casefold() == wanted}


def _find_lettered_text(options: ItemOptions, value: Any) -> set[int]:
    """Return the place of the option in a value such as 'B. Ascorbic acid', if its text is that of option B."""
    match = _LETTER_AND_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    return _find_letter(options, match.group(1)) & _find_text(options, match.group(2)) if match else set()


def _is_long_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.strip()) > 2


def _explain_open(items: Sequence[Item], key: str, fits_both: bool) -> str:
    seen = sorted({int(_unwrap(item.row[key])) for item in items})
    if fits_both:
        how = (
            "fit both counting from 0 and from 1; use the whole file (`limit` takes a part of it), give letters, or "
            f"say what the number of option A is: `columns: {{answer: {key}, answer_from: 0}}` or 1"
        )
    else:
        how = "fit neither counting from 0 nor from 1 in all items; give letters"
    return f"cannot be read: its {key} values {seen} {how}"


def _explain_value(item: Item, key: str, is_ambiguous: bool) -> str:
    options = dict(zip(LETTERS, item.options.texts, strict=False))
    if is_ambiguous:
        return f"the answer {key} = {item.row[key]!r} may mean several of the options {options}; give its letter"
    return f"the answer {key} = {item.row[key]!r} is not one of the options {options}"
