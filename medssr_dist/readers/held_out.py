"""Questions that must be none of those that a run trains on or is evaluated on: held-out validation, calibration."""

from __future__ import annotations

import re
from collections.abc import Mapping

from medssr_dist.config.base import DataSource
from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.identity import load_groups
from medssr_dist.readers.leakage import (
    ItemKey,
    find_same_items,
    list_item_keys,
    name_pairs,
    name_question,
    refuse_unlabelled,
)
from medssr_dist.readers.read import read_all

VALIDATION, CALIBRATION = "training.validate.data", "voting.calibrate.data"  # their keys
_DISEASE_ID = re.compile(r"(?:ORPHA|OMIM):\d+")  # in a set with one question per disease, such as hpo:supervised


def read_validation_questions(config: Config) -> list[Question]:
    """Read the questions of `training.validate`; [] if it is off.

    Raises:
        InputError: a question has no answer, or is also a seed, a question of stage 2 or a benchmark item.
    """
    validation = config.training.validation
    if validation is None:
        return []
    return _read_held_out(config, validation.data, VALIDATION)


def read_calibration_questions(config: Config) -> list[Question]:
    """Read the questions of `voting.calibrate`; [] if it is off.

    Raises:
        InputError: a question has no answer, comes twice, or is also a seed, a question of stage 2 or a benchmark item.
    """
    calibrate = config.voting.calibrate
    if calibrate is None:
        return []
    questions = _read_held_out(config, calibrate.data, CALIBRATION)
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"{CALIBRATION}: question {name_question(question)} comes twice; remove one of the two")
        seen.add(question.id)
    return questions


def _read_held_out(config: Config, sources: list[DataSource], key: str) -> list[Question]:
    training, random_seed = config.training, config.runtime.random_seed
    questions = read_all(sources, random_seed)
    try:
        refuse_unlabelled(questions)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    others = {
        "synthesis.seeds": config.synthesis.seeds if training.uses_pseudo_labels or key == CALIBRATION else [],
        "training.stage2.data": training.stage2.data if training.stage2.enabled else [],
        "evaluation.benchmarks": config.evaluation.benchmarks,
    }
    refuse_shared(questions, {name: read_all(each, random_seed) for name, each in others.items()}, key)
    return questions


def refuse_shared(held_out: list[Question], others: Mapping[str, list[Question]], key: str = VALIDATION) -> None:
    """Raise InputError if a held-out question is an item of one of `others`, which have names for the message.

    `key`: the config key that names the held-out questions.

    Two questions are the same item by the rules of `refuse_evaluation_items`, and if both are the questions about one
    disease in sets that have one question for each disease, under whatever id of Orphanet or OMIM.
    """
    for name, items in others.items():
        pairs = find_same_items(held_out, items, _list_keys)
        if pairs:
            raise InputError(
                f"{key}: {len(pairs)} of {len(held_out)} questions are also in {name}: {name_pairs(pairs)}; remove "
                "them from one of the two, or name other questions"
            )


def _list_keys(question: Question) -> list[ItemKey]:
    keys = list_item_keys(question)
    if _DISEASE_ID.fullmatch(question.source_id) and (group := load_groups().get(question.source_id)):
        keys.append(("disease", group))
    return keys
