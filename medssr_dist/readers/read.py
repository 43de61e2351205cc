"""Read a question file in any known format, or an embedded HPO set, as `Question` records."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers.file_rows import Row, read_rows
from medssr_dist.readers.formats import Parse, detect_format, read_id
from medssr_dist.readers.rare_marks import mark_rare

_SHOWN_PROBLEMS = 3  # bad items whose reasons are told
_NAMED_PROBLEMS = 50  # bad items whose places are told
_LONGEST_REASON, _LONGEST_REFUSAL = 400, 900  # characters: of a bad item, of a bad file


def name_source(source: DataSource) -> str:
    """Return the name of a data set in records and reports: `source.name`, or the file name without its suffix."""
    return source.name or (source.path if source.path.startswith("hpo:") else Path(source.path).stem)


def read_questions(source: DataSource, random_seed: int = 42) -> list[Question]:
    """Read the first `source.limit` (0 = all) questions of `source`, in the order of the file.

    Formats: the paper's evaluation JSON, MedQA, mediQ, MedMCQA, PubMedQA, MMLU, MedXpertQA, CareQA, HeadQA and others
    of their forms (docs/benchmarks.md), our `Question` JSONL, and the embedded sets hpo:seeds, hpo:supervised,
    hpo:evaluation and those of `knowledge.mini_world`.
    `Question.source` becomes `name_source(source)`; our own records keep theirs unless `source.name` is set.
    Questions with equal text and different ids are all kept (MMLU has 78).

    Args:
        random_seed: draws the embedded HPO vignettes; not used for files.

    Raises:
        InputError: the file is absent, empty or not UTF-8, its format is unknown, it has another number of questions
            than `source.questions`, an item is not a valid question (one option, an answer that is not an option, ...),
            or an id occurs twice.
    """
    if source.path.startswith("hpo:"):
        return _make_embedded(source, random_seed)
    path = Path(source.path)
    refuse_absent(source)
    rows = read_rows(path)
    if not rows:
        raise InputError(f"{path} has no questions; it is empty")
    if source.questions and len(rows) != source.questions:
        raise InputError(
            f"{path} has {len(rows):,} questions, but {name_source(source)!r} has {source.questions:,}; get the whole "
            "file, or set `questions: 0` for this data set to use it as it is"
        )
    try:
        parse = detect_format(rows[0]).parser(rows, name_source(source))
    except InputError as error:
        raise InputError(f"{path} {_make_line(str(error), _LONGEST_REFUSAL)}") from None
    questions = _parse_all(path, rows[: source.limit or None], lambda row: mark_rare(parse(row), source.rare, row))
    _refuse_duplicate_ids(path, questions)
    return [_set_source(question, source.name) for question in questions]


def read_all(sources: list[DataSource], random_seed: int = 42) -> list[Question]:
    """Return the questions of several data sets, one data set after the other."""
    return [question for source in sources for question in read_questions(source, random_seed)]


def refuse_absent(source: DataSource) -> None:
    """Raise InputError if the file of `source` is not there, with the command that downloads it if there is one."""
    path = Path(source.path)
    if source.origin and not os.path.lexists(path):
        raise InputError(f"{path} does not exist; `medssr prefetch` downloads it from {source.origin}")


def _make_embedded(source: DataSource, random_seed: int) -> list[Question]:
    """Return an embedded set; a rare disease that a question is about is its right option."""
    from medssr_dist.knowledge.mini_world import MINI_SETS, make_mini_questions
    from medssr_dist.knowledge.splits import SPLITS
    from medssr_dist.knowledge.vignettes import make_hpo_questions

    makers = dict.fromkeys(SPLITS, make_hpo_questions) | dict.fromkeys(MINI_SETS, make_mini_questions)
    if source.path not in makers:
        raise InputError(f"{source.path!r} is not an embedded set; choose one of {', '.join(makers)}")
    questions = []
    for question in makers[source.path](source.path, source.limit, random_seed):
        disease = question.options[question.truth or "A"] if question.rare else None
        marks = {"rare_by": "source", "rare_disease": disease}
        marked = mark_rare(question.model_copy(update=marks), source.rare, {})
        questions.append(_set_source(marked, source.name))
    return questions


def _set_source(question: Question, name: str) -> Question:
    return question.model_copy(update={"source": name}) if name else question


def _parse_all(path: Path, rows: list[Row], parse: Parse) -> list[Question]:
    """Parse all rows. Raises InputError that names all bad items, and the reasons of the first three."""
    questions: list[Question] = []
    problems: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(_refuse_broken_text(parse(row)))
        except (InputError, ValidationError) as error:
            problems[_name_item(number, row)] = _format_reason(error)
    if problems:
        shown = [f"item {name}: {reason}" for name, reason in itertools.islice(problems.items(), _SHOWN_PROBLEMS)]
        raise InputError(
            f"{path}: {len(problems)} of {len(rows)} items cannot be used; correct or remove them: "
            + " | ".join([*shown, *_name_rest(list(problems)[_SHOWN_PROBLEMS:])])
        )
    return questions


def _name_rest(names: list[str]) -> list[str]:
    """Return ["items 4 (id 'x'), 5 (id 'y')"], or [] if there are no more bad items."""
    more = f" and {len(names) - _NAMED_PROBLEMS} more" if len(names) > _NAMED_PROBLEMS else ""
    return [f"items {', '.join(names[:_NAMED_PROBLEMS])}{more}"] if names else []


def _name_item(number: int, row: Row) -> str:
    """Return the place of an item. Example: "2 (id 'medqa-000788')"."""
    try:
        identifier = read_id(row)
    except InputError:
        identifier = ""
    return f"{number} (id {identifier[:40]!r})" if identifier else str(number)


def _refuse_broken_text(question: Question) -> Question:
    """Return `question`, or raise InputError if a text holds half a surrogate pair, which no file can hold."""
    try:
        question.model_dump_json()
    except PydanticSerializationError:
        raise InputError("a text holds half of a surrogate pair (\\ud800 to \\udfff); repair it") from None
    return question


def _format_reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return _make_line(error.errors()[0]["msg"].removeprefix("Value error, "), _LONGEST_REASON)
    return _make_line(str(error), _LONGEST_REASON)


def _make_line(text: str, longest: int) -> str:
    """Return `text` as one printable line of at most `longest` characters."""
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return line if len(line) <= longest else line[:longest] + "..."


def _refuse_duplicate_ids(path: Path, questions: Iterable[Question]) -> None:
    ids = sorted(question.source_id or question.id for question in questions if _has_id(question))
    twice = [first for first, second in itertools.pairwise(ids) if first == second]
    if twice:
        raise InputError(f"{path}: {len(twice)} ids occur more than once, e.g. {twice[0]!r}; give each item its own id")


def _has_id(question: Question) -> bool:
    """Return whether the file gives an id: that of the data set, or that of a synthetic record of ours."""
    return bool(question.source_id) or question.provenance is not None
