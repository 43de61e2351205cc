"""The questions of held-out validation, which must be none of those that a run trains on or is evaluated on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.identity import load_groups
from medssr_dist.readers.leakage import ItemKey, find_same_items, list_item_keys, name_pairs, refuse_unlabelled
from medssr_dist.readers.read import read_all

_KEY = "training.validate.data"
_DISEASE_ID = re.compile(r"(?:ORPHA|OMIM):\d+")  # in a set with one question per disease, such as hpo:supervised


def read_validation_questions(config: Config) -> list[Question]:
    """Read the questions of `training.validate`; [] if it is off.

    Raises:
        InputError: a question has no answer, or is also a seed, a question of stage 2 or a benchmark item.
    """
    validation, random_seed = config.training.validation, config.runtime.random_seed
    if validation is None:
        return []
    questions = read_all(validation.data, random_seed)
    try:
        refuse_unlabelled(questions)
    except InputError as error:
        raise InputError(f"{_KEY}: {error}") from None
    training = config.training
    others = {
        "synthesis.seeds": config.synthesis.seeds if training.uses_pseudo_labels else [],
        "training.stage2.data": training.stage2.data if training.stage2.enabled else [],
        "evaluation.benchmarks": config.evaluation.benchmarks,
    }
    refuse_shared(questions, {name: read_all(sources, random_seed) for name, sources in others.items()})
    return questions


def refuse_shared(validation: list[Question], others: Mapping[str, list[Question]]) -> None:
    """Raise InputError if a validation question is an item of one of `others`, which have names for the message.

    Two questions are the same item by the rules of `refuse_evaluation_items`, and if both are the questions about one
    disease in sets that have one question for each disease, under whatever id of Orphanet or OMIM.
    """
    for name, items in others.items():
        pairs = find_same_items(validation, items, _list_keys)
        if pairs:
            raise InputError(
                f"{_KEY}: {len(pairs)} of {len(validation)} questions are also in {name}: {name_pairs(pairs)}; remove "
                "them from one of the two, or name other questions"
            )


def _list_keys(question: Question) -> list[ItemKey]:
    keys = list_item_keys(question)
    if _DISEASE_ID.fullmatch(question.source_id) and (group := load_groups().get(question.source_id)):
        keys.append(("disease", group))
    return keys
