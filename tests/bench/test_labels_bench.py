"""The benchmark of label sources: paraphrases that change no fact, and the check of the promise."""

from __future__ import annotations

import random
import re

from medssr_dist.bench.labels.label_figures import measure_promise
from medssr_dist.bench.labels.paraphrased_stems import paraphrase
from medssr_dist.data.records import Label, Question
from medssr_dist.knowledge.mini_world import EVALUATION, make_mini_cases
from medssr_dist.knowledge.vignettes import decapitalize

OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}


def test_paraphrases_keep_findings_age_and_sex():
    for case in make_mini_cases(EVALUATION, 20):
        stems = paraphrase(case, 3)
        assert stems == paraphrase(case, 3) and case.question.stem not in stems
        patient = re.match(r"An? [^ ]+-old [a-z]+", case.question.stem)[0]
        for stem in stems:
            assert stem.startswith(patient + " ")
            assert all(decapitalize(finding.name) in stem for finding in case.patient.shown)


def make_labels(count: int, right_share: float) -> list[Label]:
    """Labels of 16 votes, each right with the same probability whatever its share of votes."""
    rng = random.Random(1)
    labels = []
    for number in range(count):
        votes, truth = rng.randint(9, 16), "A" if rng.random() < right_share else "B"
        question = Question.make(f"Question {number}", list(OPTIONS.values()), source="test", truth=truth)
        counts = {"A": votes, "C": 16 - votes}
        labels.append(make_label(question, counts))
    return labels


def make_label(question: Question, counts: dict[str, int]) -> Label:
    return Label.model_construct(
        question=question, answer="A", counts=counts, requested=16, taken=16, confidence_valid=(counts["A"] / 16, 1.0)
    )


def test_a_promise_that_cannot_be_kept_is_hardly_given():
    """The labels are right in 50%; 0.55 is promised, wrongly, in at most 5% of the slices."""
    figures = measure_promise("plain", make_labels(2000, 0.5), 0.55, 0.95, splits=200, slice=200, lowest=0.5)
    assert figures.certified <= 20 and figures.holds.of == 200 and figures.holds.share >= 0.9
    assert figures.holds.count == 200 - figures.certified and figures.holds_where_certified.share in (0.0, None)


def test_a_promise_that_can_be_kept_is_given_and_holds():
    figures = measure_promise("plain", make_labels(2000, 0.7), 0.55, 0.95, splits=100, slice=200, lowest=0.5)
    assert figures.holds.count == 100 and figures.holds_where_certified.count == figures.certified > 75
    assert 0.65 < figures.mean_precision < 0.75 and figures.mean_kept > 0.95
