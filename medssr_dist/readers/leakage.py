"""Checks against leakage: no evaluation item among seeds or training items, and an answer for every gold question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError

ItemKey = tuple[str, ...]
_SHOWN = 3
# Ids that are unique over all data sets: UUID (MedMCQA), 24 hex digits (BioASQ), PubMed id of 7-8 digits.
# Counters such as MedQA's "786" are not: every split starts again from 0.
_GLOBAL_ID = re.compile(
    r"(?:^|[-_:])([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{24}|[1-9]\d{6,7})$", re.IGNORECASE
)


def refuse_evaluation_items(seeds: list[Question], evaluation: list[Question]) -> None:
    """Raise InputError if a seed or training item is an evaluation item.

    Two questions are the same item if they have the same data set and id, the same globally unique id (pmid 20297950
    and 'pubmedqa-20297950'), or the same stem apart from case, spaces and punctuation.
    """
    found = find_same_items(seeds, evaluation)
    if found:
        raise InputError(
            f"{len(found)} of {len(seeds)} seed or training items are evaluation items: {name_pairs(found)}; "
            "remove them from the seed or training file, or do not evaluate on that benchmark"
        )


def refuse_unlabelled(questions: list[Question]) -> None:
    """Raise InputError if a question has no human or ontology answer (`truth`)."""
    without = [question for question in questions if question.truth is None]
    if without:
        names = ", ".join(map(name_question, without[:_SHOWN]))
        raise InputError(
            f"{len(without)} of {len(questions)} questions have no answer, e.g. {names}; "
            "supervised training and evaluation need one for each: remove them or use the labelled split"
        )


def find_same_items(
    questions: Iterable[Question],
    others: Iterable[Question],
    list_keys: Callable[[Question], list[ItemKey]] | None = None,
) -> list[tuple[Question, Question]]:
    """Return each of `questions` that shares a key with one of `others`, with that one.

    Args:
        list_keys: the keys of a question; None: those of `list_item_keys`.
    """
    list_keys = list_keys or list_item_keys
    known = {key: other for other in others for key in list_keys(other)}
    pairs = ((question, next(filter(known.__contains__, list_keys(question)), None)) for question in questions)
    return [(question, known[key]) for question, key in pairs if key is not None]


def name_pairs(pairs: Sequence[tuple[Question, Question]]) -> str:
    """Return the first pairs of `find_same_items` by name, and how many there are more."""
    names = [tuple(map(name_question, pair)) for pair in pairs[:_SHOWN]]
    shown = ", ".join(one if one == other else f"{one} is {other}" for one, other in names)
    return shown + (f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


def list_item_keys(question: Question) -> list[ItemKey]:
    """Return the keys that two questions share if they are the same item."""
    stem = unicodedata.normalize("NFKC", question.stem).casefold()
    keys: list[ItemKey] = [("text", re.sub(r"\W+", " ", stem).strip())]
    if question.source_id:
        keys.append(("id", question.source, question.source_id))
    if match := _GLOBAL_ID.search(question.source_id):
        keys.append(("global id", match.group(1).lower()))
    return keys


def name_question(question: Question) -> str:
    """Return data set and id, or the beginning of the stem, for a message."""
    return f"{question.source}:{question.source_id or repr(question.stem[:40])}"
