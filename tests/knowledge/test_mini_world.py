"""The mini policy's world: its diseases, and patients of which each has one use."""

import random

import pytest

from medssr_dist.config.base import DataSource
from medssr_dist.errors import InputError
from medssr_dist.knowledge import mini_world
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.mini_world import (
    CHECK,
    EVALUATION,
    MINI_SETS,
    SEEDS,
    SUPERVISED,
    TEXT,
    choose_mini_diseases,
    load_mini_world,
    make_mini_questions,
)
from medssr_dist.knowledge.splits import is_evaluation
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.readers.read import read_questions


@pytest.fixture(scope="module")
def world():
    return load_mini_world()


@pytest.fixture(scope="module")
def questions():
    return {name: make_mini_questions(name, 400, 1) for name in MINI_SETS}


def test_world_has_no_evaluation_disease_and_no_disease_twice(world):
    groups = [find_group(disease.id) for disease in world.diseases]
    assert not any(map(is_evaluation, world.diseases))
    assert len(set(groups)) == len(groups) == 160


def test_lists_in_the_package_are_those_that_would_be_chosen(world):
    chosen = choose_mini_diseases()
    assert (chosen.common, chosen.rare) == (world.common, world.rare)


def test_no_patient_is_in_two_sets(questions):
    seen = {name: {question.source_id for question in found} for name, found in questions.items()}
    assert all(len(ids) == 400 for ids in seen.values())
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_every_disease_has_patients_for_every_use(world):
    for use in (TEXT, *MINI_SETS):
        assert all(world.draw_patient(disease, use, random.Random(1)).use == use for disease in world.diseases)


def test_seeds_are_common_and_evaluation_is_half_rare(questions):
    shares = {name: sum(question.rare for question in found) / 400 for name, found in questions.items()}
    assert shares == pytest.approx({SEEDS: 0, SUPERVISED: 0, CHECK: 0.5, EVALUATION: 0.5}, abs=0.01)


def test_answer_follows_from_hpo(questions):
    for question in questions[EVALUATION]:
        assert find_hpo_truth(question) == question.truth
        assert len(question.options) == 4 and question.topic


def test_evaluation_has_two_thousand_seeded_questions():
    first = make_mini_questions(EVALUATION, 2000, 1)
    assert len({question.id for question in first}) == 2000
    assert make_mini_questions(EVALUATION, 100, 1) == first[:100]
    assert make_mini_questions(EVALUATION, 100, 2) != first[:100]


def test_more_questions_than_there_are_is_one_line(monkeypatch, world):
    monkeypatch.setattr(mini_world, "_shuffle_in_turn", lambda *_: list(world.common[:1]))
    with pytest.raises(InputError, match=r"hpo:mini-seeds has \d+ questions, but its limit is 500; lower the limit"):
        make_mini_questions(SEEDS, 500, 1)


def test_reader_knows_the_sets():
    questions = read_questions(DataSource(path=EVALUATION, limit=6), random_seed=3)
    assert [question.source for question in questions] == [EVALUATION] * 6
    with pytest.raises(InputError, match="'hpo:mini' is not an embedded set; choose one of .*hpo:mini-evaluation"):
        read_questions(DataSource(path="hpo:mini", limit=6))
