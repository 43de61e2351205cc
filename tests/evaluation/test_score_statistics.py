"""Intervals, paired tests and pass@k: small cases by hand, coverage and false positives by simulation."""

import numpy as np
import pytest

from medssr_dist.evaluation.score_statistics import (
    accuracy_interval,
    detectable_difference,
    estimate_mean,
    list_group_sizes,
    majority_at,
    paired_difference,
    pass_at,
)

RUNS = 1000


def even(questions: int) -> np.ndarray:
    return np.full((1, questions), 1 / questions)


def draw_skills(random, accuracy: float, within: float, shape) -> np.ndarray:
    """Chances to answer each question right; two answers to one question have the correlation `within`."""
    scale = 1 / within - 1
    return random.beta(accuracy * scale, (1 - accuracy) * scale, shape)


def draw_shares(random, skills: np.ndarray, generations: int = 4) -> np.ndarray:
    return random.binomial(generations, skills) / generations


def test_error_is_clustered_by_question():
    shares = np.array([1.0, 0.0, 0.5, 0.5])
    found = estimate_mean(shares, even(4))
    assert found.mean == 0.5 and found.questions == 4
    assert found.error == pytest.approx(np.std(shares, ddof=1) / 2)


def test_error_of_a_macro_average_adds_up_over_benchmarks():
    weights = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    found = estimate_mean(np.array([1.0, 0.0, 0.5, 0.0]), weights)
    errors = [np.std(part, ddof=1) / np.sqrt(2) for part in ([1.0, 0.0], [0.5, 0.0])]
    assert found.mean == 0.375
    assert found.error == pytest.approx(np.hypot(*errors) / 2)


def test_equal_answers_count_as_one_answer_a_question():
    low, high = accuracy_interval(np.ones(20), even(20))
    assert high == pytest.approx(1.0) and 0.8 < low < 0.85
    low, high = accuracy_interval(np.zeros(1), even(1))
    assert low == 0.0 and high > 0.7


@pytest.mark.parametrize("within", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("accuracy", "questions"), [(0.1, 100), (0.25, 300), (0.5, 30), (0.5, 1200), (0.9, 300)])
def test_interval_covers_the_truth_in_93_to_97_percent(accuracy, questions, within):
    random = np.random.default_rng(11)
    shares = draw_shares(random, draw_skills(random, accuracy, within, (RUNS, questions)))
    bounds = [accuracy_interval(row, even(questions)) for row in shares]
    assert 0.93 <= np.mean([low <= accuracy <= high for low, high in bounds]) <= 0.97


@pytest.mark.parametrize("questions", [24, 60, 400])
def test_null_pairs_give_4_to_6_percent_false_positives(questions):
    """Two policies with the same chance on each question, so that they differ by luck alone."""
    random = np.random.default_rng(3)
    skills = draw_skills(random, 0.45, 0.4, (RUNS, questions))
    pairs = zip(draw_shares(random, skills), draw_shares(random, skills), strict=True)
    tests = [paired_difference(*pair, even(questions), permutations=499) for pair in pairs]
    assert 0.04 <= np.mean([test.p <= 0.05 for test in tests]) <= 0.06
    assert 0.93 <= np.mean([test.low <= 0 <= test.high for test in tests]) <= 0.97


def test_interval_of_a_difference_covers_it_in_93_to_97_percent():
    """Policies whose chances differ by question, by 5 points on average."""
    random, questions = np.random.default_rng(5), 400
    first = 0.9 * draw_skills(random, 0.45, 0.4, (RUNS, questions))
    second = first + 0.1 * random.binomial(1, 0.5, first.shape)
    pairs = zip(draw_shares(random, first), draw_shares(random, second), strict=True)
    tests = [paired_difference(*pair, even(questions), permutations=1) for pair in pairs]
    assert 0.93 <= np.mean([test.low <= 0.05 <= test.high for test in tests]) <= 0.97


def test_detectable_difference_is_found_in_80_percent():
    """Pairs as the formula assumes them: accuracy 0.5, half of the variance between questions, shared to 80%."""
    random, questions, generations = np.random.default_rng(7), 500, 4
    effect = detectable_difference(questions, generations)
    common, own = np.sqrt(0.8 * 0.125), np.sqrt(0.2 * 0.125)
    signs = random.choice([-1, 1], (3, RUNS, questions))
    first, second = (0.5 + common * signs[0] + own * signs[i] for i in (1, 2))
    pairs = zip(
        draw_shares(random, (first - effect / 2).clip(0, 1)),
        draw_shares(random, (second + effect / 2).clip(0, 1)),
        strict=True,
    )
    tests = [paired_difference(*pair, even(questions), permutations=1) for pair in pairs]
    assert 0.76 <= np.mean([test.low > 0 for test in tests]) <= 0.84


def test_more_answers_detect_smaller_differences():
    assert detectable_difference(4000, 4) == pytest.approx(detectable_difference(1000, 4) / 2)
    assert detectable_difference(1000, 64) < detectable_difference(1000, 4) < detectable_difference(1000, 1)


def test_permutation_p_equals_that_of_all_exchanges():
    first, second = np.zeros(5), np.array([1.0, 0.5, 0.75, 0.25, 0.5])
    # only keeping or exchanging all 5 pairs gives a sum as large: 2 of 32, of which half counts
    assert paired_difference(first, second, even(5)).p == pytest.approx(1 / 32, abs=0.005)
    assert paired_difference(first, second, even(5)) == paired_difference(first, second, even(5))


def test_equal_policies_have_no_difference():
    shares = np.array([0.5, 1.0, 0.0])
    found = paired_difference(shares, shares, even(3))
    assert (found.difference, found.p, found.questions) == (0.0, 1.0, 3)
    assert found.low == -found.high < -0.3, "three equal questions do not show that the policies are equal"


def test_one_difference_in_all_questions_is_not_certain():
    found = paired_difference(np.zeros(5), np.ones(5), even(5))
    assert found.difference == 1.0 and found.low < 0.5 and found.high == 1.0


def test_pass_at_k_is_the_chance_of_a_right_one_among_k():
    assert pass_at(np.array([0, 1, 2, 4]), 4, 2) == pytest.approx([0, 1 / 2, 5 / 6, 1])
    assert pass_at(np.array([0, 1, 3]), 4, 1) == pytest.approx([0, 1 / 4, 3 / 4])


def test_majority_at_k():
    rows = [["A", "A", "B", "C"], ["B", "A", None, "B"], [None, None, None, None], ["B", "A", "A", "B"]]
    assert majority_at(rows, ["A"] * 4, 4) == pytest.approx([1, 0, 0, 0.5])
    assert majority_at(rows, ["A"] * 4, 2) == pytest.approx([0.5, 0.25, 0, 0.5])
    assert majority_at(rows, ["A"] * 4, 1) == pytest.approx([0.5, 0.25, 0, 0.5])


def test_group_sizes():
    assert [list_group_sizes(n) for n in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]
