"""The exact one-sided bound of a rate (Clopper and Pearson, Biometrika 26:404-413, 1934)."""

from __future__ import annotations

import math

_HALVINGS = 40  # an error below 1e-12


def count_tail(successes: int, trials: int, rate: float) -> float:
    """Return the probability of `successes` or more in `trials` trials of this rate, 0 < rate < 1."""
    failures = trials - successes
    if failures <= successes:
        return min(1.0, _sum_lower(failures, trials, 1 - rate))
    return max(0.0, 1 - _sum_lower(successes - 1, trials, rate))


def bound_from_below(successes: int, trials: int, confidence: float) -> float:
    """Return the lower bound that a rate exceeds with this confidence, given `successes` of `trials`; 0 without any.

    Example: bound_from_below(29, 29, 0.95) == 0.9019, and bound_from_below(28, 28, 0.95) == 0.8985

    Raises:
        ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if count_tail(successes, trials, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _sum_lower(most: int, trials: int, rate: float) -> float:
    """Return the probability of at most `most` successes."""
    if most < 0:
        return 0.0
    log_rate, log_other = math.log(rate), math.log1p(-rate)
    whole = math.lgamma(trials + 1)
    terms = (
        whole - math.lgamma(i + 1) - math.lgamma(trials - i + 1) + i * log_rate + (trials - i) * log_other
        for i in range(most + 1)
    )
    return math.fsum(map(math.exp, terms))
