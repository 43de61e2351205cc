"""Vignettes from HPO: unique diagnosis, disjoint sets, seeding, and the answer found from the text."""

from collections import defaultdict

import pytest

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import draw_entities
from medssr_dist.knowledge.hpo import find_ancestors, find_descendants, load_diseases
from medssr_dist.knowledge.names import derive_family, split_words
from medssr_dist.knowledge.orphanet import load_orphanet
from medssr_dist.knowledge.rare_diseases import find_annotations, load_rare_diseases
from medssr_dist.knowledge.splits import SPLITS
from medssr_dist.knowledge.vignettes import (
    DEFAULT_QUESTIONS,
    MIN_ABSENT,
    _find_phenotypes,
    find_hpo_truth,
    make_hpo_questions,
)


@pytest.fixture(scope="module")
def questions():
    return {name: make_hpo_questions(name) for name in SPLITS}


@pytest.fixture(scope="module")
def annotated():
    """Disease name -> phenotypes of all entries that have the name or are this disease."""
    found = defaultdict(set)
    for disease in (*load_diseases().values(), *load_rare_diseases()):
        for entry in (disease, *find_annotations(disease.id)):
            found[split_words(disease.name)].update(phenotype.id for phenotype in entry.phenotypes)
    return found


def test_each_set_has_well_formed_questions(questions):
    for name, found in questions.items():
        assert len(found) == len({question.id for question in found}) == DEFAULT_QUESTIONS
        for question in found:
            assert question.options[question.truth] == load_orphanet()[question.source_id].name
            assert (len(question.options), question.source, question.rare) == (4, name, True)
            assert question.stem.endswith("Which of the following is the most likely diagnosis?")
            assert 25 <= len(question.stem.split()) <= 70


def test_diagnosis_is_unique(questions, annotated):
    for question in [question for found in questions.values() for question in found]:
        shown = _find_phenotypes(question.stem)
        assert 3 <= len(shown) <= 5
        for letter, option in question.options.items():
            terms = annotated[split_words(option)]
            absent = sum(terms.isdisjoint({term} | find_ancestors(term) | find_descendants(term)) for term in shown)
            assert absent == 0 if letter == question.truth else absent >= MIN_ABSENT, (question.stem, option)


def test_distractors_share_phenotypes_but_not_the_family(questions, annotated):
    sharing = 0
    for question in questions["hpo:evaluation"]:
        shown = _find_phenotypes(question.stem)
        families = [derive_family(option) for option in question.options.values()]
        assert len(set(families)) == len(families)
        sharing += sum(bool(annotated[split_words(option)] & shown) for option in question.options.values()) - 1
    assert sharing > 1.5 * len(questions["hpo:evaluation"])


def test_sets_are_disjoint_and_entities_exclude_evaluation(questions):
    diseases = {name: {question.source_id for question in found} for name, found in questions.items()}
    names = {
        name: {split_words(option) for question in found for option in question.options.values()}
        for name, found in questions.items()
    }
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not (diseases[one] & diseases[other] or names[one] & names[other])
    assert not diseases["hpo:evaluation"] & {entity.id for entity in draw_entities(Knowledge(), 0).entities}


def test_questions_are_seeded_and_limited_to_the_first(questions):
    assert make_hpo_questions("hpo:seeds") == questions["hpo:seeds"]
    assert make_hpo_questions("hpo:seeds", 5) == questions["hpo:seeds"][:5]
    assert make_hpo_questions("hpo:seeds", 5, random_seed=1) != questions["hpo:seeds"][:5]


def test_letters_are_balanced_and_stems_differ(questions):
    found = [question for group in questions.values() for question in group]
    letters = [question.truth for question in found]
    assert all(0.18 < letters.count(letter) / len(letters) < 0.32 for letter in "ABCD")
    assert len({question.stem.split(". ")[0] for question in found}) > 0.5 * len(found)


def test_unknown_set_and_too_many_questions_are_refused():
    with pytest.raises(InputError, match="hpo:seeds, hpo:supervised, hpo:evaluation"):
        make_hpo_questions("hpo:train")
    with pytest.raises(InputError, match="its limit is 1000000"):
        make_hpo_questions("hpo:seeds", 10**6)


def test_truth_is_found_from_the_stem(questions):
    found = [question for group in questions.values() for question in group]
    read = [find_hpo_truth(question) for question in found]
    assert sum(truth == question.truth for truth, question in zip(read, found, strict=True)) >= 0.95 * len(found)
    assert all(truth in (None, question.truth) for truth, question in zip(read, found, strict=True))


@pytest.mark.parametrize(
    ("stem", "options"),
    [
        ("Which vitamin prevents scurvy?", ["Vitamin A", "Vitamin C"]),
        ("A man has seizures and ataxia. Which drug is given?", ["Valproate", "Warfarin"]),
        ("Which is autosomal recessive?", ["Alkaptonuria", "Marfan syndrome"]),
        ("A woman has dark urine. Diagnosis?", ["Alkaptonuria", "Marfan syndrome"]),
        ("A woman has seizure and short stature. Diagnosis?", ["Alkaptonuria", "Vitamin C"]),
        ("A woman has ochronosis, dark urine and ectopia lentis. Diagnosis?", ["Alkaptonuria", "Marfan syndrome"]),
    ],
)
def test_truth_is_none_if_hpo_does_not_determine_it(stem, options):
    assert find_hpo_truth(Question.make(stem, options, source="t")) is None


def test_truth_ignores_case_and_negated_findings():
    options = ["Marfan syndrome", "ALKAPTONURIA", "A mystery"]
    stem = "A man has low back pain, Ochronosis and dark urine without ectopia lentis. Diagnosis?"
    assert find_hpo_truth(Question.make(stem, options, source="t")) == "B"
