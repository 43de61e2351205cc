"""What may not happen to data: evaluation items among seeds or training items, and unlabelled gold."""

from __future__ import annotations

import re
import unicodedata

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError

_SHOWN = 3
# Ids that mean one item wherever they stand: UUID (MedMCQA), 24 hex digits (BioASQ), PubMed id of 7-8
# digits. Counters such as MedQA's "786" do not: each split counts anew.
_GLOBAL_ID = re.compile(
    r"(?:^|[-_:])([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{24}|[1-9]\d{6,7})$", re.IGNORECASE
)


def refuse_evaluation_items(seeds: list[Question], evaluation: list[Question]) -> None:
    """Raise InputError if a seed or training item is an evaluation item.

    Same item: same data set and id; the same globally unique id (pmid 20297950 and
    'pubmedqa-20297950'); or the same stem, up to case, spaces and punctuation.
    """
    held_out: dict[tuple, Question] = {}
    for question in evaluation:
        held_out.update(dict.fromkeys(_identities(question), question))
    found = [(seed, held_out[key]) for seed in seeds if (key := _first_shared(seed, held_out)) is not None]
    if found:
        names = ", ".join(f"{_name(seed)} is {_name(item)}" for seed, item in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InputError(
            f"{len(found)} of {len(seeds)} seed or training items are evaluation items: {names}{more}; "
            "remove them from the seed or training file, or do not evaluate on that benchmark"
        )


def refuse_unlabelled(questions: list[Question]) -> None:
    """Raise InputError unless every question has a human or ontology answer (`truth`)."""
    without = [question for question in questions if question.truth is None]
    if without:
        names = ", ".join(map(_name, without[:_SHOWN]))
        raise InputError(
            f"{len(without)} of {len(questions)} questions have no answer, e.g. {names}; "
            "supervised training and evaluation need one each: remove them or use the labelled split"
        )


def _first_shared(question: Question, held_out: dict[tuple, Question]) -> tuple | None:
    return next((key for key in _identities(question) if key in held_out), None)


def _identities(question: Question) -> list[tuple]:
    keys = [("text", re.sub(r"\W+", " ", unicodedata.normalize("NFKC", question.stem).casefold()).strip())]
    if question.source_id:
        keys.append(("id", question.source, question.source_id))
    if match := _GLOBAL_ID.search(question.source_id):
        keys.append(("global id", match.group(1).lower()))
    return keys


def _name(question: Question) -> str:
    return f"{question.source}:{question.source_id or repr(question.stem[:40])}"
