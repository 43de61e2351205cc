"""Questions in a JSON value, in the many shapes in which chat models write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from medssr_dist.synthesis.checks.option_labels import read_labels
from medssr_dist.synthesis.checks.plain_questions import split_lettered
from medssr_dist.synthesis.checks.reply_parts import RawQuestion, RejectedReply

_VIGNETTE_KEYS = (
    *("vignette", "clinical_vignette", "case", "clinical_case", "case_presentation", "scenario", "clinical_scenario"),
    *("patient", "presentation", "patient_presentation"),
)
_UNCLEAR_KEYS = ("context", "background", "passage", "information", "clinical_information")  # vignette or knowledge
_STEM_KEYS = ("stem", "question_stem", "question", "question_text", "lead_in", "leadin")
_OPTION_KEYS = ("options", "choices", "answer_choices", "answer_options", "alternatives", "answers")
_TEXT_KEYS = ("text", "value", "content", "description", "name", "option", "choice", "answer")
_LABEL_KEYS = ("label", "letter", "id", "key", "index", "option", "choice", "number")
_ANSWER_KEY = re.compile(r"answer|expla|rationale|reason|correct|solution|justif|gold|truth|^(?:key|ans|is_right)$")
_LETTER = re.compile(r"\W*[A-Ja-j]\W*")
_TARGET_KEYS = ("label", "target", "gt", "index", "idx")
_HARMLESS_KEYS = ("type", "format", "difficulty", "level", "category", "grade", "version", "id")
_DRAFT_KEY = re.compile(r"draft|seed|^first|original|example|previous|^old|^initial")
_LETTER_KEY = re.compile(r"(?:op|opt|option|choice|answer)?_?([a-j]|10|[0-9])")
_KEY_SERIES = ("abcdefghij", [str(number) for number in range(10)], [str(number) for number in range(1, 11)])


class _Candidate(NamedTuple):
    question: RawQuestion
    is_draft: bool


def read_json_question(value: dict[str, Any]) -> RawQuestion | None:
    """Return the question in a JSON object: its last one, not counting those under a key such as "draft".

    Raises:
        RejectedReply: the object is a question whose options cannot be told apart.
    """
    found = list(_list_candidates(value, leak="", is_draft=False))
    final = [candidate for candidate in found if not candidate.is_draft] or found
    return final[-1].question if final else None


def _list_candidates(value: Any, leak: str, is_draft: bool) -> Iterator[_Candidate]:
    if isinstance(value, list):
        for item in value:
            yield from _list_candidates(item, leak, is_draft)
        return
    if not isinstance(value, dict):
        return
    fields = _fold_keys(value)
    leak = leak or _find_answer_key(fields)
    question = _read_question(fields, leak)
    if question:
        yield _Candidate(question, is_draft)
        return
    for key, item in fields.items():
        yield from _list_candidates(item, leak, is_draft or _DRAFT_KEY.search(key) is not None)


def _fold_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` with keys such as "answer_choices". Raises RejectedReply if two keys become one."""
    folded: dict[str, Any] = {}
    for key, item in value.items():
        name = _fold_key(key)
        if folded.setdefault(name, item) != item:
            raise RejectedReply("not_parsable", f"the reply has two values of the key {key!r}")
    return folded


@lru_cache(maxsize=1024)
def _fold_key(key: str) -> str:
    """Return "answer_choices" for "Answer Choices", "answerChoices" and "answer-choices"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.strip())
    return re.sub(r"[\W_]+", "_", words).strip("_").casefold()


def _find_answer_key(fields: Mapping[str, Any]) -> str:
    """Return the key that tells the answer: by its name, or by a value that is the letter of an option."""
    for key, item in fields.items():
        holds_options = key in _OPTION_KEYS and not (key == "answers" and fields.keys() & set(_OPTION_KEYS[:-1]))
        if not item or holds_options or _LETTER_KEY.fullmatch(key):
            continue
        if _ANSWER_KEY.search(key):
            return f"the key {key!r}"
        if isinstance(item, str) and key not in _HARMLESS_KEYS and _LETTER.fullmatch(item):
            return f"the key {key!r} with the value {item!r}"
        if isinstance(item, str) and key in _TARGET_KEYS and item.isdigit():
            return f"the key {key!r} with the value {item!r}"
    return ""


def _read_question(fields: dict[str, Any], leak: str) -> RawQuestion | None:
    """Return the question whose stem and options are fields of one object, or None."""
    stem = _read_stem(fields)
    if not any(key in fields for key in _STEM_KEYS):
        return None
    options = next((fields[key] for key in _OPTION_KEYS if isinstance(fields.get(key), dict | list | str)), None)
    if options is None:
        options = {key: item for key, item in fields.items() if _LETTER_KEY.fullmatch(key)} or None
    if options is None:
        written = split_lettered(stem)
        return RawQuestion(written.stem, written.options, leak) if written and not written.rest.strip() else None
    unclear = [key for key in _UNCLEAR_KEYS if _read_text(fields.get(key))]
    if unclear:
        raise RejectedReply("not_parsable", f"it is unclear whether {unclear[0]!r} is part of the question")
    texts, told = _read_options(options)
    return RawQuestion(stem, tuple(texts), leak or told)


def _read_stem(fields: Mapping[str, Any]) -> str:
    """Return the vignette and the question below it, where they are fields of their own; "" if there is none."""
    stem = ""
    for key in (*_VIGNETTE_KEYS, *_STEM_KEYS):
        part = _read_text(fields.get(key))
        if part and not stem.endswith(part):
            stem = f"{stem}\n{part}" if stem else part
    return stem


def _read_text(value: Any) -> str:
    """Return the text in "text", {"text": "text"} or ["sentence", "sentence"]; "" if there is none."""
    if isinstance(value, dict):
        folded = _fold_keys(value)
        value = _read_stem(folded) or next((folded[key] for key in ("text", "content") if key in folded), "")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    return value.strip() if isinstance(value, str) else ""


def _read_options(options: Any) -> tuple[list[str], str]:
    """Return the options' texts, and what tells the answer ("" if nothing does)."""
    if isinstance(options, str):
        written = split_lettered("\n" + options)
        return (list(written.options), "") if written else ([], "")
    if isinstance(options, list) and len(options) == 1 and isinstance(options[0], dict):
        options = options[0]  # a list of one object that holds all options
    if isinstance(options, list):
        read = [_read_option(item) for item in options]
        return [text for text, _ in read], next((told for _, told in read if told), "")
    marks = [item for item in options.values() if isinstance(item, bool)]
    if marks and len(marks) == len(options):  # {"Gout": true, "Lupus": false}
        return list(options), "a mark of truth on an option" if any(marks) else ""
    return _read_lettered(_fold_keys(options))


def _read_lettered(fields: dict[str, Any]) -> tuple[list[str], str]:
    letters = {key: match.group(1) for key in fields if (match := _LETTER_KEY.fullmatch(key))}
    others = [key for key in fields if key not in letters]
    if letters and others:
        told = _find_answer_key(fields)
        if told:
            return [], told
        raise RejectedReply("not_parsable", f"the options have the key {others[0]!r} beside letters")
    keys = sorted(fields, key=lambda key: (len(letters[key]), letters[key])) if letters else list(fields)
    names = [letters[key] for key in keys if letters]
    if names and not any(names == list(series[: len(names)]) for series in _KEY_SERIES):
        raise RejectedReply("unclear_labels", f"the letters of the options are not in order: {', '.join(names)}")
    read = [_read_option(fields[key]) for key in keys]
    return [text for text, _ in read], next((told for _, told in read if told), "")


def _read_option(item: Any) -> tuple[str, str]:
    """Return the text in "text", {"A": "text"}, {"label": "A", "text": "text"} or ["A", "text"], and what is told."""
    if isinstance(item, str | bool):
        return str(item), ""
    if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return (item[1], "") if read_labels(item[0]) and not read_labels(item[0])[0].text else ("", "")
    if not isinstance(item, dict):
        return "", ""
    fields = _fold_keys(item)
    own = next((key for key in _TEXT_KEYS if isinstance(fields.get(key), str)), None)
    own = own or next((key for key in fields if len(fields) == 1 or _LETTER_KEY.fullmatch(key)), None)
    told = [key for key, value in fields.items() if key != own and key not in _LABEL_KEYS and _tells(key, value)]
    text = fields.get(own) if own else ""
    return text if isinstance(text, str) else "", f"the key {told[0]!r} of an option" if told else ""


def _tells(key: str, value: Any) -> bool:
    return value is True or bool(value and _ANSWER_KEY.search(key))
