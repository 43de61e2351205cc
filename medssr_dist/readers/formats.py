"""One parser per question format: from a row of the published file to a `Question`.

The format is recognised by the keys of the first row, never by the file name. Parsers raise InputError without the
file name; `read.py` adds file and item.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from medssr_dist.data.records import LETTERS, Question, hash_content, parse_record
from medssr_dist.errors import InputError
from medssr_dist.readers.item_answers import ANSWER_KEYS, AnswerReader, Item, refuse_unread_answers
from medssr_dist.readers.item_options import ItemOptions, has_options, is_absent, read_options
from medssr_dist.readers.named_columns import ID_KEYS, TOPIC_KEYS
from medssr_dist.sources.file_rows import STEM_KEYS
from medssr_dist.sources.table_rows import Row

Parse = Callable[[Row], Question]
_log = logging.getLogger(__name__)
_IMAGE_KEYS = ("images", "image", "image_paths", "image_path")


@dataclass(frozen=True)
class Format:
    """A known question format.

    Attributes:
        keys: a row that has all of them is in this format.
        parser: `parser(rows, source)` returns the parser of one row; it may look at all rows first.
    """

    name: str
    keys: frozenset[str]
    parser: Callable[[list[Row], str], Parse]

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.keys <= row.keys()


def detect_format(row: Mapping[str, Any]) -> Format:
    """Return the format of `row`. Raises InputError with the keys of `row` and the known formats."""
    for kind, keys in _NOT_QUESTIONS.items():
        if keys <= row.keys():
            raise InputError(f"contains {kind}, not questions; give the file of the questions")
    for known in FORMATS:
        if known.matches(row):
            return known
    has_answer = any(key in row for key in ANSWER_KEYS)
    if not any(key in row for key in STEM_KEYS) or not (has_answer or has_options(row)):
        formats = "; ".join(f"{known.name} ({', '.join(sorted(known.keys))})" for known in FORMATS)
        found = ", ".join(map(str, list(row)[:12])) or "none"
        raise InputError(
            f"is of no known format: its keys are {found}; known formats (with the keys they need): {formats}; "
            "MedQA, MedMCQA, MMLU and others (question; options, choices, or opa, opb...; answer, answer_idx or cop); "
            "for another form name the columns: `columns: {question: ..., options: ..., answer: ...}`"
        )
    return _ITEMS


def _make_own_parser(rows: list[Row], source: str) -> Parse:
    """Our own `Question` records, one per line, as in synthesis/questions.jsonl."""

    def parse(row: Row) -> Question:
        question = parse_record(Question, row, "record")
        if question.id != hash_content([question.stem, question.options]):
            raise InputError(f"id {question.id!r} is not the hash of stem and options: the record was edited")
        return question

    return parse


def _make_pubmedqa_parser(rows: list[Row], source: str) -> Parse:
    """PubMedQA, the authors' (ori_pqal.json) and the hub's: stem = abstract, empty line, question; yes, no or maybe."""
    options = ["yes", "no", "maybe"]

    def parse(row: Row) -> Question:
        context = row.get("CONTEXTS", row.get("context"))
        abstract = _list_sentences(context.get("contexts") if isinstance(context, dict) else context)
        question = _read_text(row, "QUESTION" if "QUESTION" in row else "question")
        truth = None
        if not is_absent(decision := row.get("final_decision")) and decision != "":
            if decision not in options:
                raise InputError(f"final_decision = {decision!r} is not yes, no or maybe")
            truth = LETTERS[options.index(decision)]
        stem = "\n".join([*abstract, "", question])
        return Question.make(stem, options, source=source, source_id=read_id(row), truth=truth)

    return parse


def _make_item_parser(rows: list[Row], source: str) -> Parse:
    """Questions with options: MedQA, mediQ, MedMCQA, MMLU, MedXpertQA, CareQA, HeadQA, and the paper's files.

    The options have a key or columns of their own, or are the last lines of the question, as 'A. ...' (the paper's
    files). Sentences in `context` (mediQ) are put before the question.
    """
    items = [item for row in rows if (item := _try_item(row)) is not None]
    if items and all(item.options.are_bare_letters for item in items):
        raise InputError("has bare letters as the options of all items; their texts are missing")
    refuse_unread_answers(items)
    answers = AnswerReader.learn(items)
    _warn_of_absent_options(items, source)

    def parse(row: Row) -> Question:
        split = _split_item(row)
        truth = answers.read(Item(row, split.options))
        fields = {"source": source, "source_id": read_id(row), "topic": _find_topic(row), "truth": truth}
        return Question.make(split.stem, split.options.texts, **fields)

    return parse


def _warn_of_absent_options(items: Sequence[Item], source: str) -> None:
    without = [item for item in items if item.options.left_out]
    if without:
        _log.warning(
            "%s: %d of %d items have no text for option %s (null or NaN); they are read with fewer options, e.g. %.60r",
            source,
            len(without),
            len(items),
            without[0].options.left_out[0],
            next((without[0].row[key] for key in STEM_KEYS if key in without[0].row), ""),
        )


class _SplitItem(NamedTuple):
    """Stem and options of an item."""

    stem: str
    options: ItemOptions


def _try_item(row: Row) -> Item | None:
    """Return the item, or None if it cannot be read; its parser then says why."""
    try:
        return Item(row, _split_item(row).options)
    except InputError:
        return None


def _split_item(row: Row) -> _SplitItem:
    if key := next((key for key in _IMAGE_KEYS if row.get(key) and not is_absent(row[key])), None):
        raise InputError(f"needs an image ({key} = {str(row[key])[:60]!r}), which a text model does not see")
    stem = _read_text(row, next((key for key in STEM_KEYS if key in row), STEM_KEYS[0]))
    if has_options(row):
        options = read_options(row)
        stem = _cut_repeated_options(stem, options.texts)
    else:
        stem, texts = split_options(stem)
        options = ItemOptions(texts, list(LETTERS[: len(texts)]), "question")
    return _SplitItem(" ".join([*_list_sentences(row.get("context")), stem]), options)


def _cut_repeated_options(stem: str, options: list[str]) -> str:
    """Return `stem` without 'Answer Choices: (A) ... (B) ...' at its end, as MedXpertQA has it beside the options."""
    head, marker, tail = stem.rpartition("Answer Choices:")
    listed = " ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
    return head.strip() if marker and head.strip() and tail.split() == listed.split() else stem


def _find_topic(row: Row) -> str:
    """Return the subject: the patient's first specialty in mediQ, the exam step (`meta_info`) in MedQA."""
    patient = row.get("patient")
    specialties = patient.get("specialties") if isinstance(patient, dict) else None
    if isinstance(specialties, list) and specialties:
        return _clean_topic(specialties[0])
    return next((topic for key in TOPIC_KEYS if (topic := _clean_topic(row.get(key)))), "")


def _clean_topic(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


class StemAndOptions(NamedTuple):
    """The two parts of a question's text. Example: StemAndOptions("Which?", ["x", "y"])."""

    stem: str
    options: list[str]


def split_options(text: str) -> StemAndOptions:
    """Split 'stem\\nA. x\\nB. y' into stem and option texts.

    The options start at the last line 'A. ', so that 'I.' and 'II.' stay in the stem. Some MedQA items end with a
    line that is only a quotation mark; it is removed.

    Raises:
        InputError: there are no options, or a letter is missing.
    """
    text = re.sub(r'\n"\s*\Z', "", text)
    start = text.rfind("\nA. ")
    if start < 0:
        raise InputError("has no options: expected lines 'A. ...', 'B. ...' in the question's text")
    parts = re.split(r"\n([A-J])\. ", text[start:])
    letters, options = parts[1::2], [option.strip() for option in parts[2::2]]
    if letters != list(LETTERS[: len(letters)]):
        raise InputError(f"options must be lettered A, B, C... without a gap, got {letters}")
    if len(letters) == len(LETTERS) and "\nK. " in options[-1]:
        raise InputError(f"a question needs 2-{len(LETTERS)} options, got more")
    return StemAndOptions(text[:start].strip(), options)


def _list_sentences(value: object) -> list[str]:
    """Return the context before a question, which is absent, one string, or a list of sentences."""
    if is_absent(value) or isinstance(value, str):
        return [value] if isinstance(value, str) and value else []
    if not isinstance(value, list) or not all(isinstance(sentence, str) for sentence in value):
        raise InputError(f"the context must be a list of sentences, got {type(value).__name__}")
    return value


def _read_text(row: Row, key: str) -> str:
    value = row.get(key)
    if is_absent(value) or not str(value).strip():
        raise InputError(f"{key!r} is missing or empty")
    if not isinstance(value, str):
        raise InputError(f"{key!r} must be a text, got {type(value).__name__}")
    return value.strip()


def read_id(row: Row) -> str:
    """Return the item's id in its data set, '' if it has none. HeadQA counts in each exam (`name`) anew.

    Raises:
        InputError: the id is neither a text nor a number.
    """
    key = next((key for key in ID_KEYS if not is_absent(row.get(key))), None)
    if key is None and not is_absent(row.get("qid")):
        return "-".join(str(row[key]) for key in ("name", "qid") if not is_absent(row.get(key)))
    if key is not None and not isinstance(row[key], str | int | float):
        raise InputError(f"{key} must be a text or a number, got {type(row[key]).__name__}")
    return "" if key is None else str(row[key])


FORMATS = (
    Format("our records", frozenset({"schema_version", "stem", "options", "source"}), _make_own_parser),
    Format("PubMedQA", frozenset({"QUESTION", "CONTEXTS"}), _make_pubmedqa_parser),
    Format("PubMedQA of the hub", frozenset({"pubid", "question", "context"}), _make_pubmedqa_parser),
    Format("official evaluation", frozenset({"question", "gold"}), _make_item_parser),
)
_ITEMS = Format("items with options", frozenset({"question"}), _make_item_parser)
_NOT_QUESTIONS = {
    "vote labels": {"question", "outcome", "counts"},
    "votes": {"question_id", "policy", "sampling"},
    "rejected replies": {"index", "reason", "reply"},
}
