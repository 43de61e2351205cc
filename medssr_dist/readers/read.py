"""Read a data set of questions, from a file, a folder, the Hugging Face hub or HPO, as `Question` records."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers.formats import detect_format, read_id
from medssr_dist.readers.named_columns import apply_columns, unwrap_row
from medssr_dist.readers.rare_marks import mark_rare
from medssr_dist.sources.file_bytes import strip_suffixes
from medssr_dist.sources.hub_sets import find_hub_place
from medssr_dist.sources.source_rows import read_source_rows
from medssr_dist.sources.table_rows import Row

_log = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 3  # bad items whose reasons are told
_NAMED_PROBLEMS = 50  # bad items whose places are told
_LONGEST_REASON, _LONGEST_REFUSAL = 400, 900  # characters: of a bad item, of a bad file


def name_source(source: DataSource) -> str:
    """Return the name of a data set in records and reports.

    It is `source.name`, or the file name without its suffixes, or the name on the hub, with the subset if there is one.
    """
    if source.name or source.path.startswith("hpo:"):
        return source.name or source.path
    place = find_hub_place(source, source.revision)
    name = strip_suffixes(place.file or place.repo if place else source.path)
    return f"{name}-{source.subset}" if source.subset else name


def read_questions(source: DataSource, random_seed: int = 42) -> list[Question]:
    """Read the first `source.limit` (0 = all) questions of `source`, in its order or, with `shuffle`, in a drawn one.

    Formats: the paper's evaluation JSON, MedQA, mediQ, MedMCQA, PubMedQA, MMLU, MedXpertQA, CareQA, HeadQA and others
    of their forms (docs/benchmarks.md), our `Question` JSONL, any form whose columns `source.columns` names, and the
    embedded sets hpo:seeds, hpo:supervised, hpo:evaluation and those of `knowledge.mini_world`.
    `Question.source` becomes `name_source(source)`; our own records keep theirs unless `source.name` is set.
    Questions with equal text and different ids are all kept (MMLU has 78).

    Args:
        random_seed: draws the embedded HPO vignettes, and the order if `source.shuffle` is true.

    Raises:
        InputError: the data set is absent, empty or damaged, its format is unknown, it has another number of questions
            than `source.questions`, an item is not a valid question (one option, an answer that is not an option, ...)
            and `source.unusable` is not 'skip', or an id occurs twice.
    """
    if source.path.startswith("hpo:"):
        return _make_embedded(source, random_seed)
    refuse_absent(source)
    found = read_source_rows(source)
    rows, where = found.rows, found.where
    if not rows:
        raise InputError(f"{where} has no questions; it is empty")
    if source.questions and len(rows) != source.questions:
        raise InputError(
            f"{where} has {len(rows):,} questions, but {name_source(source)!r} has {source.questions:,}; get the whole "
            "file, or set `questions: 0` for this data set to use it as it is"
        )
    try:
        known = apply_columns(rows, source.columns) if source.columns else [unwrap_row(row) for row in rows]
        parse = detect_format(known[0]).parser(known, name_source(source))
    except InputError as error:
        raise InputError(f"{where} {_make_line(str(error), _LONGEST_REFUSAL)}") from None
    items = [_Item(number, *pair) for number, pair in enumerate(zip(rows, known, strict=True), start=1)]
    if source.shuffle:
        random.Random(random_seed).shuffle(items)
    read = lambda item: mark_rare(parse(item.known), _find_rare_rule(source), item.row)  # noqa: E731
    questions = _parse_all(where, items, read, source)
    _refuse_duplicate_ids(where, questions)
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
        marked = mark_rare(question.model_copy(update=marks), _find_rare_rule(source), {})
        questions.append(_set_source(marked, source.name))
    return questions


def _find_rare_rule(source: DataSource) -> bool | str | None:
    """Return `source.rare`, or the column that `source.columns` names for it."""
    columns = source.columns
    return columns.rare if columns and columns.rare else source.rare


def _set_source(question: Question, name: str) -> Question:
    return question.model_copy(update={"source": name}) if name else question


class _Item(NamedTuple):
    """An item with its place in the data set, from 1: as it is there, and with the keys that the formats know."""

    number: int
    row: Row
    known: Row


def _parse_all(where: str, items: list[_Item], read: Callable[[_Item], Question], source: DataSource) -> list[Question]:
    """Read the first `source.limit` items that can be used.

    Raises:
        InputError: an item before them cannot be used, and `source.unusable` is 'refuse', or none can. It names all bad
            items, and the reasons of the first three.
    """
    questions: list[Question] = []
    problems: dict[str, str] = {}
    limit = source.limit or len(items)
    for tried, item in enumerate(items):
        if len(questions) == limit or (source.unusable == "refuse" and tried == limit):
            break
        try:
            questions.append(_refuse_broken_text(read(item)))
        except (InputError, ValidationError) as error:
            problems[_name_item(item)] = _format_reason(error)
    if not problems:
        return questions
    told = " | ".join(
        [f"item {name}: {reason}" for name, reason in itertools.islice(problems.items(), _SHOWN_PROBLEMS)]
        + _name_rest(list(problems)[_SHOWN_PROBLEMS:])
    )
    count = f"{len(problems)} of {len(problems) + len(questions)} items"
    if source.unusable == "refuse" or not questions:
        fix = "correct or remove them, or leave them out with `unusable: skip`"
        raise InputError(f"{where}: {count} cannot be used; {fix}: {told}")
    _log.warning("%s: %s are left out: %s", where, count, told)
    return questions


def _name_rest(names: list[str]) -> list[str]:
    """Return ["items 4 (id 'x'), 5 (id 'y')"], or [] if there are no more bad items."""
    more = f" and {len(names) - _NAMED_PROBLEMS} more" if len(names) > _NAMED_PROBLEMS else ""
    return [f"items {', '.join(names[:_NAMED_PROBLEMS])}{more}"] if names else []


def _name_item(item: _Item) -> str:
    """Return the place of an item. Example: "2 (id 'medqa-000788')"."""
    try:
        identifier = read_id(item.known)
    except InputError:
        identifier = ""
    return f"{item.number} (id {identifier[:40]!r})" if identifier else str(item.number)


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


def _refuse_duplicate_ids(where: str, questions: Iterable[Question]) -> None:
    ids = sorted(question.source_id or question.id for question in questions if _has_id(question))
    twice = [first for first, second in itertools.pairwise(ids) if first == second]
    if twice:
        fix = "give each item its own id, or name the column that has it: `columns: {id: ...}`"
        raise InputError(f"{where}: {len(twice)} ids occur more than once, e.g. {twice[0]!r}; {fix}")


def _has_id(question: Question) -> bool:
    """Return whether the file gives an id: that of the data set, or that of a synthetic record of ours."""
    return bool(question.source_id) or question.provenance is not None
