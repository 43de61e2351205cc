"""How far scores can be trusted: intervals, paired differences, pass@k, maj@k, and what a planned run can detect.

The unit is the question. The generations of one question are not independent of each other, and neither are exact
copies of a question, so each question enters with one value: its share of right answers. A set of questions is
described by weights w[b, q]: the share of question q in benchmark b of B benchmarks; each row sums to 1. For one
benchmark B = 1; the macro average has a row for each benchmark. With values x[q]:

    mean       m = (1/B) sum over b of m_b,  m_b = sum over q of w[b, q] x[q]
    influence  z[q] = (1/B) sum over b of w[b, q] (x[q] - m_b) sqrt(N_b / (N_b - 1)),  N_b = number of its questions
    error      s = sqrt(sum over q of z[q]^2), the standard error of m (clustered by question)

The interval of an accuracy is Wilson's with the number of independent answers that would have the same error,
m (1 - m) / s^2. The interval of a difference of two policies is that of the mean of x = difference by question. Both
are wider for few questions, as Student's t is, and have a width even where all questions have one value. The p of a
difference comes from a permutation test: if two policies are equally good, exchanging their answers to a question is as
likely as not. Formulas: Miller, Adding Error Bars to Evals, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERMUTATIONS = 9_999
POWER = 0.8
_Z = NormalDist().inv_cdf(0.975)
_TINY = 1e-9  # differences of sums below it are rounding
_CHUNK = 2**22  # random signs that are in memory at once


class Estimate(NamedTuple):
    """A mean over questions with its standard error. Example: Estimate(mean=0.52, error=0.013, questions=1273)."""

    mean: float
    error: float
    questions: int


class ScoreInterval(NamedTuple):
    """A 95% interval. Example: ScoreInterval(low=0.49, high=0.55)."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """The difference of two policies on the same questions.

    Example: PairedTest(difference=0.021, low=0.004, high=0.038, p=0.016, questions=1273)

    Attributes:
        difference: accuracy of the second policy minus that of the first.
        low, high: its 95% interval.
        p: two-sided, of the hypothesis that both are equally good.
    """

    difference: float
    low: float
    high: float
    p: float
    questions: int


def estimate_mean(values: Array, weights: Array) -> Estimate:
    """Return the mean of `values` and its standard error; 0 for a single question.

    Args:
        values: one value for each question, shape [Q].
        weights: share of each question in each benchmark, shape [B, Q]; each row sums to 1.
    """
    means = weights @ values
    sizes = np.count_nonzero(weights, axis=1)
    small = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    influence = (weights * (values - means[:, None]) * small[:, None]).mean(axis=0)
    return Estimate(float(means.mean()), float(np.sqrt(np.sum(influence**2))), len(values))


def accuracy_interval(values: Array, weights: Array) -> ScoreInterval:
    """Return the 95% interval of an accuracy (arguments as in `estimate_mean`).

    Where all questions have the same value the error is 0 and says nothing: each question then counts as one answer.
    """
    mean, error, questions = estimate_mean(values, weights)
    answers = mean * (1 - mean) / error**2 if error > _TINY else float(questions)
    z = _student_quantile(questions)
    spread = z * math.sqrt(mean * (1 - mean) / answers + z**2 / (4 * answers**2))
    middle, scale = mean + z**2 / (2 * answers), 1 + z**2 / answers
    return ScoreInterval(max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def paired_difference(first: Array, second: Array, weights: Array, permutations: int = PERMUTATIONS) -> PairedTest:
    """Compare two policies by their shares of right answers to the same questions.

    Args:
        first, second: share of right answers to each question, shape [Q].
        weights: as in `estimate_mean`.
        permutations: random exchanges; the smallest possible p is 1 / (permutations + 1).
    """
    changes = second - first
    found = estimate_mean(changes, weights)
    low, high = _difference_interval(found)
    p = _permutation_p(changes * weights.mean(axis=0), permutations)
    return PairedTest(found.mean, low, high, p, found.questions)


def _difference_interval(found: Estimate) -> ScoreInterval:
    """Return the 95% interval of a mean difference.

    Where all questions have the same difference the error is 0 and says nothing. Then two made-up questions are added,
    one without a difference and one half for each policy (Agresti and Min, Stat. Med. 24:729-740, 2005).
    """
    mean, error, questions = found
    if error <= _TINY:
        mean, squares, questions = mean * questions / (questions + 2), mean**2 * questions + 1, questions + 2
        error = math.sqrt((squares / questions - mean**2) / questions)
    spread = _student_quantile(questions) * error
    return ScoreInterval(max(-1.0, mean - spread), min(1.0, mean + spread))


def _student_quantile(questions: int) -> float:
    """Return the 97.5% quantile of Student's t, by the first term of its expansion (Abramowitz and Stegun 26.7.5)."""
    return _Z * (1 + (_Z**2 + 1) / (4 * max(questions - 1, 1)))


def _permutation_p(parts: Array, permutations: int) -> float:
    """Return the two-sided p of a sum of `parts`, each of which may have the other sign as well.

    Sums as large as the observed one count half (mid-p): with few questions there are many of them.
    """
    parts = parts[parts != 0]
    observed = abs(parts.sum())
    if observed < _TINY:
        return 1.0
    random, extreme = np.random.default_rng(0), 0.0
    chunk = max(1, _CHUNK // len(parts))
    for start in range(0, permutations, chunk):
        signs = random.integers(0, 2, (min(chunk, permutations - start), len(parts)), dtype=np.int8)
        sums = np.abs(2 * (signs @ parts) - parts.sum())
        larger, equal = np.count_nonzero(sums > observed + _TINY), np.count_nonzero(np.abs(sums - observed) <= _TINY)
        extreme += larger + equal / 2
    return float(extreme + 1) / (permutations + 1)


def pass_at(right: NDArray[np.int64], generations: int, k: int) -> Array:
    """Return for each question the chance that at least one of `k` of its answers is right.

    It is 1 - C(n-c, k) / C(n, k) for c right ones of n (Chen et al., arXiv 2107.03374).

    Args:
        right: number of right answers to each question, shape [Q].
    """
    table = [1 - math.comb(generations - c, k) / math.comb(generations, k) for c in range(generations + 1)]
    return np.array(table)[right]


def majority_at(letters: Sequence[Sequence[str | None]], truths: Sequence[str], k: int) -> Array:
    """Return for each question the chance that the majority of `k` answers is right.

    It is the mean over the groups of k answers, one after the other. Answers without a letter do not vote. Letters
    with equally many votes share the chance.

    Args:
        letters: the answers to each question, by generation.
        truths: the right letter of each question.
    """
    found = [
        np.mean([_majority_chance(row[start : start + k], truth) for start in range(0, len(row) - k + 1, k)])
        for row, truth in zip(letters, truths, strict=True)
    ]
    return np.array(found, dtype=np.float64)


def _majority_chance(group: Sequence[str | None], truth: str) -> float:
    votes = [letter for letter in group if letter is not None]
    most = max(map(votes.count, votes), default=0)
    winners = {letter for letter in votes if votes.count(letter) == most}
    return (truth in winners) / len(winners) if winners else 0.0


def list_group_sizes(generations: int) -> list[int]:
    """Return the k of pass@k and maj@k: the powers of two below n, and n."""
    return [*(2**i for i in range(generations.bit_length()) if 2**i < generations), generations]


class Assumptions(NamedTuple):
    """What `detectable_difference` assumes of two policies; all of it is unknown before the run.

    Attributes:
        accuracy: of both policies; 0.5 needs the most questions.
        within: correlation of two answers of one policy to one question.
        between: correlation of the chances of the two policies to answer a question right.
    """

    accuracy: float = 0.5
    within: float = 0.5
    between: float = 0.8


def detectable_difference(questions: int, generations: int, assumed: Assumptions = Assumptions()) -> float:  # noqa: B008
    """Return the smallest true difference of two policies that a paired test at 5% finds with a power of 80%.

    With v = accuracy (1 - accuracy), the difference of a question's shares has the variance
    2 v within (1 - between) + 2 v (1 - within) / n.

    Args:
        questions: distinct questions, at least 1.
        generations: n, answers of each policy to a question.
    """
    variance = assumed.accuracy * (1 - assumed.accuracy)
    skill = 2 * variance * assumed.within * (1 - assumed.between)
    chance = 2 * variance * (1 - assumed.within) / generations
    return (_Z + NormalDist().inv_cdf(POWER)) * math.sqrt((skill + chance) / questions)
