"""`read_questions`: any known question file, or an embedded HPO set, as Question records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.config.base import DataSource
from medssr_dist.data.jsonl import read_json, read_jsonl, read_text
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers.formats import Parse, detect_format

_SHOWN_PROBLEMS = 3


def name_source(source: DataSource) -> str:
    """The name a data set has in records and reports: `source.name`, else the file's stem."""
    return source.name or (source.path if source.path.startswith("hpo:") else Path(source.path).stem)


def read_questions(source: DataSource, random_seed: int = 42) -> list[Question]:
    """Read `source` in its own order; `source.limit` takes the first N.

    Formats: MedQA (4- or 5-option JSONL, and mediQ's with context sentences), MedMCQA, PubMedQA's
    ori_pqal.json, the paper's evaluation JSON, our Question JSONL, and hpo:seeds|supervised|evaluation.
    Question.source is `name_source(source)`; our own records keep theirs unless `source.name` is set.
    Questions of the same text under distinct ids (MMLU has 78) are all kept.

    Args:
        random_seed: draws the embedded HPO vignettes; files do not use it.

    Raises:
        InputError: absent, empty or non-UTF-8 file, unknown format, an item that is no valid question
            (one option, answer not among the options...), or an id that occurs twice.
    """
    if source.path.startswith("hpo:"):
        return _embedded(source, random_seed)
    path = Path(source.path)
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} holds no questions; it is empty")
    try:
        parse = detect_format(rows[0]).parser(rows, name_source(source))
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    questions = _parse_all(path, rows[: source.limit or None], parse)
    _refuse_duplicate_ids(path, questions)
    return [_renamed(question, source.name) for question in questions]


def read_all(sources: list[DataSource], random_seed: int = 42) -> list[Question]:
    """The questions of several data sets, one after the other."""
    return [question for source in sources for question in read_questions(source, random_seed)]


def _embedded(source: DataSource, random_seed: int) -> list[Question]:
    from medssr_dist.knowledge.vignettes import make_hpo_questions

    questions = make_hpo_questions(source.path, source.limit, random_seed)
    return [_renamed(question, source.name) for question in questions]


def _renamed(question: Question, name: str) -> Question:
    return question.model_copy(update={"source": name}) if name else question


def _rows(path: Path) -> list[dict]:
    """The file's items: JSONL lines, a JSON list, or PubMedQA's object of pmid -> item."""
    text = read_text(path)
    if not text.strip():
        return []
    if _is_jsonl(text):
        rows = list(read_jsonl(path))
        return _pmid_rows(rows[0]) or rows if len(rows) == 1 else rows
    document = read_json(path)
    if isinstance(document, dict):
        return _pmid_rows(document) or [document]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise InputError(f"{path} must be a JSON list of objects, or JSONL with one object a line")
    return document


def _is_jsonl(text: str) -> bool:
    """Whether the first line that is not blank is a whole JSON object."""
    first = next(line for line in text.split("\n") if line.strip())
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _pmid_rows(document: dict) -> list[dict]:
    if not all(isinstance(item, dict) and "QUESTION" in item for item in document.values()):
        return []
    return [{"pmid": pmid, **item} for pmid, item in document.items()]


def _parse_all(path: Path, rows: list[dict], parse: Parse) -> list[Question]:
    """Parse every row; all that fail are reported at once, so that a file is repaired in one go."""
    questions, problems = [], []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(parse(row))
        except (InputError, ValidationError) as error:
            problems.append(f"item {number}{_id_of(row)}: {_reason(error)}")
    if problems:
        raise InputError(
            f"{path}: {len(problems)} of {len(rows)} items cannot be used; correct or remove them: "
            + " | ".join(problems[:_SHOWN_PROBLEMS])
            + (" | ..." if len(problems) > _SHOWN_PROBLEMS else "")
        )
    return questions


def _id_of(row: dict) -> str:
    identifier = row.get("id", row.get("pmid"))
    return "" if identifier is None else f" (id {identifier!r})"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return str(error)


def _refuse_duplicate_ids(path: Path, questions: Iterable[Question]) -> None:
    ids = sorted(question.source_id or question.id for question in questions if _has_id(question))
    twice = [first for first, second in itertools.pairwise(ids) if first == second]
    if twice:
        raise InputError(f"{path}: {len(twice)} ids occur more than once, e.g. {twice[0]!r}; give each item its own id")


def _has_id(question: Question) -> bool:
    """Whether the file gave an id: the data set's own, or that of one of our synthetic records."""
    return bool(question.source_id) or question.provenance is not None
