"""One parser per question format: from a row of the published file to a `Question`.

The format is recognised by the keys of the first row, never by the file name. Parsers raise InputError without the
file name; `read.py` adds file and item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from medssr_dist.data.records import LETTERS, Question, hash_content, parse_record
from medssr_dist.errors import InputError

Row = dict[str, Any]  # one item of a published file, as JSON
Parse = Callable[[Row], Question]


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
    formats = "; ".join(f"{known.name} ({', '.join(sorted(known.keys))})" for known in FORMATS)
    found = ", ".join(map(str, list(row)[:12])) or "none"
    raise InputError(f"is of no known format: its keys are {found}; known formats (with the keys they need): {formats}")


def _make_own_parser(rows: list[Row], source: str) -> Parse:
    """Our own `Question` records, one per line, as in synthesis/questions.jsonl."""

    def parse(row: Row) -> Question:
        question = parse_record(Question, row, "record")
        if question.id != hash_content([question.stem, question.options]):
            raise InputError(f"id {question.id!r} is not the hash of stem and options: the record was edited")
        return question

    return parse


def _make_pubmedqa_parser(rows: list[Row], source: str) -> Parse:
    """PubMedQA (ori_pqal.json): the stem is abstract, empty line, question; the options are yes, no, maybe."""
    options = ["yes", "no", "maybe"]

    def parse(row: Row) -> Question:
        stem = "\n".join([*_list_sentences(row.get("CONTEXTS")), "", _read_text(row, "QUESTION")])
        truth = _find_letter(row.get("final_decision"), options)
        return Question.make(stem, options, source=source, source_id=_read_id(row, "pmid"), truth=truth)

    return parse


def _make_medmcqa_parser(rows: list[Row], source: str) -> Parse:
    """MedMCQA: options in `opa` to `opd`, topic in `subject_name`, number of the answer in `cop`.

    `cop` is absent or -1 if the answer is not published.
    """
    first = _find_first_cop(rows)

    def parse(row: Row) -> Question:
        options = [_read_text(row, key) for key in ("opa", "opb", "opc", "opd")]
        cop = _cop(row)
        truth = None if cop is None else _get_letter(cop - first, options)
        fields = {"source": source, "source_id": _read_id(row), "topic": _clean_topic(row.get("subject_name"))}
        return Question.make(_read_text(row, "question"), options, truth=truth, **fields)

    return parse


def _find_first_cop(rows: list[Row]) -> int:
    """Return the number of option A in `cop`: 1 in the authors' files (1-4), 0 in the Hugging Face copy (0-3).

    All rows are searched: a 0 decides for 0-3, a 4 for 1-4. Neither or both is an InputError, because a wrong
    guess would shift every answer.
    """
    seen = {cop for row in rows if (cop := _cop(row)) is not None}
    if not seen or (0 in seen and 4 not in seen):
        return 0
    if 4 in seen and 0 not in seen:
        return 1
    raise InputError(
        f"cannot be read: its cop values {sorted(seen)} fit both 0-3 and 1-4; "
        "use the whole file (`limit` takes a part of it), or give answer letters in the MedQA format"
    )


def _cop(row: Row) -> int | None:
    value = row.get("cop")
    if value is None or value == "":
        return None
    try:
        cop = int(value)
    except (TypeError, ValueError):
        raise InputError(f"cop = {value!r} is not a number") from None
    return None if cop == -1 else cop


def _make_medqa_parser(rows: list[Row], source: str) -> Parse:
    """MedQA: options by letter; the answer as a letter in `answer_idx`, or as a letter or text in `answer`.

    The mediQ variant has the vignette as sentences in `context`; they are put before the question. The topic is the
    patient's first specialty in mediQ, and the exam step (`meta_info`) in MedQA.
    """

    def parse(row: Row) -> Question:
        options = _list_options(row.get("options"))
        gold = row["answer_idx"] if row.get("answer_idx") is not None else row.get("answer")
        stem = " ".join([*_list_sentences(row.get("context")), _read_text(row, "question")])
        fields = {"source": source, "source_id": _read_id(row), "topic": _find_topic(row)}
        return Question.make(stem, options, truth=_find_letter(gold, options), **fields)

    return parse


def _find_topic(row: Row) -> str:
    patient = row.get("patient")
    specialties = patient.get("specialties") if isinstance(patient, dict) else None
    return _clean_topic(specialties[0] if isinstance(specialties, list) and specialties else row.get("meta_info"))


def _clean_topic(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _list_options(options: object) -> list[str]:
    if not isinstance(options, dict):
        raise InputError(f"options must be an object of letter: text, got {type(options).__name__}")
    letters = sorted(options)
    if letters != list(LETTERS[: len(letters)]):
        raise InputError(f"options must be lettered A, B, C... without a gap, got {letters}")
    return [_read_text(options, letter) for letter in letters]


def _make_official_parser(rows: list[Row], source: str) -> Parse:
    """The paper's evaluation files: the text of the question ends with the options, one per line, as 'A. ...'."""

    def parse(row: Row) -> Question:
        stem, options = split_options(_read_text(row, "question"))
        truth = _find_letter(row.get("gold"), options)
        return Question.make(stem, options, source=source, source_id=_read_id(row), truth=truth)

    return parse


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
    return StemAndOptions(text[:start].strip(), options)


def _find_letter(gold: object, options: list[str]) -> str | None:
    """Return the letter that `gold` means, or None if it is empty. `gold` is a letter or the text of one option."""
    if gold is None or gold == "":
        return None
    text = str(gold).strip()
    letters = LETTERS[: len(options)]
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    same = [letter for letter, option in zip(letters, options, strict=True) if option.casefold() == text.casefold()]
    if len(same) != 1:
        raise InputError(f"the answer {gold!r} is not one of the options {dict(zip(letters, options, strict=True))}")
    return same[0]


def _get_letter(index: int, options: list[str]) -> str:
    if not 0 <= index < len(options):
        raise InputError(f"the number of the answer is not one of the {len(options)} options")
    return LETTERS[index]


def _list_sentences(value: object) -> list[str]:
    """Return the context before a question, which is absent, one string, or a list of sentences."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list):
        raise InputError(f"the context must be a list of sentences, got {type(value).__name__}")
    return [str(sentence) for sentence in value]


def _read_text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None or not str(value).strip():
        raise InputError(f"{key!r} is missing or empty")
    return str(value).strip()


def _read_id(row: Row, key: str = "id") -> str:
    value = row.get(key)
    return "" if value is None else str(value)


FORMATS = (
    Format("our records", frozenset({"schema_version", "stem", "options", "source"}), _make_own_parser),
    Format("PubMedQA", frozenset({"QUESTION", "CONTEXTS"}), _make_pubmedqa_parser),
    Format("MedMCQA", frozenset({"question", "opa", "opb", "opc", "opd"}), _make_medmcqa_parser),
    Format("MedQA", frozenset({"question", "options"}), _make_medqa_parser),
    Format("official evaluation", frozenset({"question", "gold"}), _make_official_parser),
)
_NOT_QUESTIONS = {
    "vote labels": {"question", "outcome", "counts"},
    "votes": {"question_id", "policy", "sampling"},
    "rejected replies": {"index", "reason", "reply"},
}
