"""One parser a question format: a row as the data set ships it -> the fields of a Question.

A format is told by the keys of the first row, never by the file's name. Parsers raise InputError
without naming the file; `read.py` adds file and item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medssr_dist.data.records import LETTERS, Question, content_hash, parse_record
from medssr_dist.errors import InputError

Parse = Callable[[dict], Question]


@dataclass(frozen=True)
class Format:
    """A known format: the keys that tell it, and `parser(rows, source)` -> a parser of one row."""

    name: str
    keys: frozenset[str]
    parser: Callable[[list[dict], str], Parse]

    def matches(self, row: Mapping) -> bool:
        return self.keys <= row.keys()


def detect_format(row: Mapping) -> Format:
    """The format of `row`. Raises InputError saying which keys were found and which formats are known."""
    for kind, keys in _NOT_QUESTIONS.items():
        if keys <= row.keys():
            raise InputError(f"holds {kind}, not questions; name the file of the questions themselves")
    for known in FORMATS:
        if known.matches(row):
            return known
    formats = "; ".join(f"{known.name} ({', '.join(sorted(known.keys))})" for known in FORMATS)
    found = ", ".join(map(str, list(row)[:12])) or "none"
    raise InputError(f"is of no known format: its keys are {found}; known formats (with the keys they need): {formats}")


def _own_record(rows: list[dict], source: str) -> Parse:
    """Our own Question lines, as synthesis/questions.jsonl holds them."""

    def parse(row: dict) -> Question:
        question = parse_record(Question, row, "record")
        if question.id != content_hash([question.stem, question.options]):
            raise InputError(f"id {question.id!r} is not the hash of stem and options: the record was edited")
        return question

    return parse


def _pubmedqa(rows: list[dict], source: str) -> Parse:
    """PubMedQA's ori_pqal.json: stem = abstract, then the question; options yes, no, maybe."""
    options = ["yes", "no", "maybe"]

    def parse(row: dict) -> Question:
        stem = "\n".join([*_sentences(row.get("CONTEXTS")), "", _text(row, "QUESTION")])
        truth = _letter(row.get("final_decision"), options)
        return Question.make(stem, options, source=source, source_id=_identifier(row, "pmid"), truth=truth)

    return parse


def _medmcqa(rows: list[dict], source: str) -> Parse:
    """MedMCQA: options in opa..opd, the answer's number in cop (absent or -1: not public), topic in subject_name."""
    base = _cop_base(rows)

    def parse(row: dict) -> Question:
        options = [_text(row, key) for key in ("opa", "opb", "opc", "opd")]
        cop = _cop(row)
        truth = None if cop is None else _letter_at(cop - base, options)
        fields = {"source": source, "source_id": _identifier(row), "topic": _topic(row.get("subject_name"))}
        return Question.make(_text(row, "question"), options, truth=truth, **fields)

    return parse


def _cop_base(rows: list[dict]) -> int:
    """0 or 1: where `cop` counts from. The authors' files count 1-4, the Hugging Face copy 0-3.

    Told by the whole file: a 0 somewhere means 0, a 4 means 1. Neither (or both) is refused, since
    a wrong guess would shift every answer.
    """
    seen = {cop for row in rows if (cop := _cop(row)) is not None}
    if not seen or (0 in seen and 4 not in seen):
        return 0
    if 4 in seen and 0 not in seen:
        return 1
    raise InputError(
        f"cannot be read: its cop values {sorted(seen)} leave open whether cop counts 0-3 or 1-4; "
        "use the whole file (with `limit` to take a part), or give answer letters in the MedQA form"
    )


def _cop(row: dict) -> int | None:
    value = row.get("cop")
    if value is None or value == "":
        return None
    try:
        cop = int(value)
    except (TypeError, ValueError):
        raise InputError(f"cop = {value!r} is not a number") from None
    return None if cop == -1 else cop


def _medqa(rows: list[dict], source: str) -> Parse:
    """MedQA: options by letter; the answer's letter in answer_idx, or letter or text in answer.

    The mediQ form splits the vignette into sentences (`context`); they go before the question. The topic is
    the patient's first specialty in mediQ's form, the exam's step (`meta_info`) in MedQA's own.
    """

    def parse(row: dict) -> Question:
        options = _lettered_options(row.get("options"))
        gold = row["answer_idx"] if row.get("answer_idx") is not None else row.get("answer")
        stem = " ".join([*_sentences(row.get("context")), _text(row, "question")])
        fields = {"source": source, "source_id": _identifier(row), "topic": _specialty(row)}
        return Question.make(stem, options, truth=_letter(gold, options), **fields)

    return parse


def _specialty(row: dict) -> str:
    patient = row.get("patient")
    specialties = patient.get("specialties") if isinstance(patient, dict) else None
    return _topic(specialties[0] if isinstance(specialties, list) and specialties else row.get("meta_info"))


def _topic(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _lettered_options(options: object) -> list[str]:
    if not isinstance(options, dict):
        raise InputError(f"options must be an object of letter: text, got {type(options).__name__}")
    letters = sorted(options)
    if letters != list(LETTERS[: len(letters)]):
        raise InputError(f"options must be lettered A, B, C... without a gap, got {letters}")
    return [_text(options, letter) for letter in letters]


def _official(rows: list[dict], source: str) -> Parse:
    """The paper's evaluation files: the options stand in the question's text, one a line, 'A. ...'."""

    def parse(row: dict) -> Question:
        stem, options = split_options(_text(row, "question"))
        truth = _letter(row.get("gold"), options)
        return Question.make(stem, options, source=source, source_id=_identifier(row), truth=truth)

    return parse


def split_options(text: str) -> tuple[str, list[str]]:
    """Split 'stem\\nA. x\\nB. y' into stem and option texts.

    The option block starts at the last line 'A. ', so that a stem which lists 'I.', 'II.' stays whole.
    Some MedQA items end in a stray quotation mark on a line of its own; it is dropped.
    """
    text = re.sub(r'\n"\s*\Z', "", text)
    start = text.rfind("\nA. ")
    if start < 0:
        raise InputError("has no options: expected lines 'A. ...', 'B. ...' in the question's text")
    parts = re.split(r"\n([A-J])\. ", text[start:])
    letters, options = parts[1::2], [option.strip() for option in parts[2::2]]
    if letters != list(LETTERS[: len(letters)]):
        raise InputError(f"options must be lettered A, B, C... without a gap, got {letters}")
    return text[:start].strip(), options


def _letter(gold: object, options: list[str]) -> str | None:
    """Letter of `gold`, itself a letter or the text of exactly one option; None if there is no gold."""
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


def _letter_at(index: int, options: list[str]) -> str:
    if not 0 <= index < len(options):
        raise InputError(f"the answer's number does not point at one of the {len(options)} options")
    return LETTERS[index]


def _sentences(value: object) -> list[str]:
    """The context before a question: absent, one string, or a list of sentences."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list):
        raise InputError(f"the context must be a list of sentences, got {type(value).__name__}")
    return [str(sentence) for sentence in value]


def _text(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None or not str(value).strip():
        raise InputError(f"{key!r} is missing or empty")
    return str(value).strip()


def _identifier(row: dict, key: str = "id") -> str:
    value = row.get(key)
    return "" if value is None else str(value)


FORMATS = (
    Format("our records", frozenset({"schema_version", "stem", "options", "source"}), _own_record),
    Format("PubMedQA", frozenset({"QUESTION", "CONTEXTS"}), _pubmedqa),
    Format("MedMCQA", frozenset({"question", "opa", "opb", "opc", "opd"}), _medmcqa),
    Format("MedQA", frozenset({"question", "options"}), _medqa),
    Format("official evaluation", frozenset({"question", "gold"}), _official),
)
_NOT_QUESTIONS = {
    "vote labels": {"question", "outcome", "counts"},
    "votes": {"question_id", "policy", "sampling"},
    "rejected replies": {"index", "reason", "reply"},
}
