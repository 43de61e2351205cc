"""The mini policy's text: diseases of its world, patients of no question set, replies that are read right."""

import collections
import random
import re

import pytest

from medssr_dist.data.answers import extract_answer
from medssr_dist.knowledge.mini_world import EVALUATION, MINI_SETS, TEXT, load_mini_world, make_mini_questions
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.mini_policy.mini_text import LOOKUP_SHARE, PASSAGE_SHARE, PLAIN, VARIED, MiniText

DRAWN = 4000


@pytest.fixture(scope="module")
def text():
    return MiniText(load_mini_world(), 1)


@pytest.fixture(scope="module")
def documents(text):
    return [text.draw() for _ in range(DRAWN)]


@pytest.fixture(scope="module")
def vignettes(documents):
    return [document for document in documents if document.question is not None]


def test_no_vignette_of_a_question_set_is_in_the_text(vignettes):
    asked = {question.source_id for name in MINI_SETS for question in make_mini_questions(name, 1000, 42)}
    assert asked.isdisjoint(document.patient.key for document in vignettes)
    assert {document.patient.use for document in vignettes} == {TEXT}
    stems = {question.stem for question in make_mini_questions(EVALUATION, 2000, 42)}
    assert stems.isdisjoint(document.question.stem for document in vignettes)


def test_text_names_diseases_of_the_world_alone(documents, vignettes):
    world = load_mini_world()
    names = {disease.name for disease in world.diseases}
    assert {document.disease for document in documents} <= {disease.id for disease in world.diseases}
    assert all(names.issuperset(document.question.options.values()) for document in vignettes)


def test_shares_of_kinds_and_of_rare_diseases(text, documents):
    assert text.passages + text.lookups + text.vignettes == DRAWN
    assert text.passages / DRAWN == pytest.approx(PASSAGE_SHARE, abs=0.03)
    assert text.lookups / DRAWN == pytest.approx(LOOKUP_SHARE, abs=0.03)
    rare = {disease.id for disease in load_mini_world().rare}
    counts = collections.Counter(document.disease in rare for document in documents)
    assert counts[False] / counts[True] == pytest.approx(PLAIN.common_to_rare, rel=0.15)


def test_rarity_says_nothing_about_the_answer(vignettes):
    """Among options, the rare ones are the answer as often as the common ones."""
    rare = {disease.name for disease in load_mini_world().rare}
    options = [
        (name, letter == document.question.truth)
        for document in vignettes
        for letter, name in document.question.options.items()
    ]
    share = {kind: [right for name, right in options if (name in rare) is kind] for kind in (True, False)}
    means = {kind: sum(found) / len(found) for kind, found in share.items()}
    assert means[True] == pytest.approx(means[False], abs=0.05)


def test_replies_name_findings_disease_and_the_right_letter(vignettes):
    world = load_mini_world()
    names = {disease.id: disease.name for disease in world.diseases}
    for document in vignettes:
        reply, question = document.text, document.question
        assert extract_answer(reply, question.options).letter == question.truth
        assert reply.endswith(f"The answer is {question.truth}.") and names[document.disease] in reply
        shown = [decapitalize(finding.name) for finding in document.patient.shown]
        assert any(finding in reply for finding in shown)


def test_lookups_state_letters_that_are_right(documents):
    lookups = [document.text.split("\n\n") for document in documents if document.text.startswith("A. ")]
    assert {len(options.splitlines()) for options, _ in lookups} == {2, 3, 4, 5}
    for options, statement in lookups:
        names = {name: letter for letter, name in (line.split(". ", 1) for line in options.splitlines())}
        named, letter = re.search(r"This is (.+)\. The answer is ([A-E])\.$", statement).groups()
        assert names[named] == letter


def test_two_replies_to_one_patient_differ(text):
    world = load_mini_world()
    patient = world.draw_patient(world.common[3], TEXT, random.Random(2))
    others = list(world.common[10:13])
    assert len({text._write_reply(patient, patient.disease, others, "A") for _ in range(20)}) > 5


def test_state_continues_the_text():
    one, other = MiniText(load_mini_world(), 7), MiniText(load_mini_world(), 8)
    for _ in range(20):
        one.draw()
    other.set_state(one.get_state())
    assert [one.draw() for _ in range(10)] == [other.draw() for _ in range(10)]
    assert (one.passages, one.lookups, one.vignettes) == (other.passages, other.lookups, other.vignettes)


def test_a_wrong_reply_names_the_option_that_it_chooses():
    text, wrong, seen = MiniText(load_mini_world(), 9), 0, 0
    while seen < 300:
        question = (document := text.draw(VARIED)).question
        if question is None:
            continue
        letter = document.text[-2]
        assert question.options[letter] in document.text
        wrong, seen = wrong + (letter != question.truth), seen + 1
    assert VARIED.errors - 0.1 < wrong / seen < VARIED.errors + 0.1
