"""The smallest vote share above which labels have the precision wanted, with finite-sample confidence.

The thresholds are fixed beforehand. They are tested from the largest one downwards, each at the whole level: a
threshold passes if the exact lower bound of the precision of the labels that reach it (Clopper-Pearson) is at least
the precision wanted. The first one that fails ends the sequence, and the last one that passed is the result. As a
wrong result needs a pass at the first threshold whose precision is too low, its probability is at most that of this
one test (fixed-sequence testing: Bauer, Biometrical Journal 33:709-715, 1991; for the choice of thresholds:
Angelopoulos et al., Learn then Test, arXiv 2110.01052).

Where to begin. Few labels reach the largest shares, and a test on few labels fails whatever their precision. So the
sequence begins at the largest threshold that enough labels reach: a quarter of all labels with a winner, and so many
that a precision half-way between the one wanted and 1 would pass. Where none has so many, it begins at the smallest
one. This choice looks at how many labels there are, never at whether they are right. Given the number of labels that
reach a threshold, the right ones among them are binomial, so a test from there keeps its level. If the sequence begins
below the first threshold that is too low, fewer labels than usual reached the larger shares; this makes a pass less
probable, as long as labels of larger shares are not less often right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from medssr_dist.data.exact_bound import count_tail
from medssr_dist.voting.tally import reaches_threshold

_STARTING_PART = 4  # the sequence begins where one label of so many is kept
_MOST_LABELS = 20_000  # beyond this, a number still needed is not given


class JudgedLabel(NamedTuple):
    """A label of the slice; `share` is None without a winner. Example: JudgedLabel(0.75, True, rare=False)"""

    share: float | None
    right: bool
    rare: bool


class KeptCounts(NamedTuple):
    """Labels that reach a threshold, and the right ones among them. Example: KeptCounts(0.75, kept=310, right=295)"""

    threshold: float
    kept: int
    right: int


class SequenceResult(NamedTuple):
    """The thresholds of a sequence that passed, in the order of the tests, and the first one that failed.

    Example: SequenceResult(passed=(KeptCounts(1.0, 120, 119),), failed=KeptCounts(0.9375, 180, 165))
    """

    passed: tuple[KeptCounts, ...]
    failed: KeptCounts | None


def list_thresholds(samples: int, lowest: float) -> list[float]:
    """Return the shares i / K from 1 down to `lowest`, which is the last one; 0 is left out."""
    return sorted(
        {i / samples for i in range(1, samples + 1) if i / samples >= lowest} | {lowest} - {0.0}, reverse=True
    )


def count_kept(labels: Sequence[JudgedLabel], threshold: float) -> KeptCounts:
    """Count the labels that reach a threshold."""
    kept = [label.right for label in labels if label.share is not None and reaches_threshold(label.share, 1, threshold)]
    return KeptCounts(threshold, len(kept), sum(kept))


def run_sequence(
    labels: Sequence[JudgedLabel], thresholds: Sequence[float], precision: float, confidence: float
) -> SequenceResult:
    """Test the thresholds, which descend, until one fails."""
    counts = [count_kept(labels, threshold) for threshold in thresholds]
    enough = max(count_enough(precision, confidence), counts[-1].kept / _STARTING_PART)
    start = next((place for place, each in enumerate(counts) if each.kept >= enough), len(counts) - 1)
    passed: list[KeptCounts] = []
    for each in counts[start:]:
        if not _passes(each.right, each.kept, precision, confidence):
            return SequenceResult(tuple(passed), each)
        passed.append(each)
    return SequenceResult(tuple(passed), None)


def count_fewest(precision: float, confidence: float) -> int:
    """Return the fewest labels that can pass: so many, all of them right. Example: 29 for 0.90 and 0.95."""
    return math.ceil(math.log(1 - confidence) / math.log(precision))


def count_enough(precision: float, confidence: float) -> int:
    """Return the labels needed where the share of right ones is half-way between `precision` and 1."""
    needed = count_needed((1 + precision) / 2, precision, confidence)
    assert needed is not None, "a share above the precision wanted passes with enough labels"
    return needed


def count_needed(share: float, precision: float, confidence: float) -> int | None:
    """Return the labels needed to pass if `share` of them are right; None where no number up to 20,000 is enough."""
    if share <= precision:
        return None

    def is_enough(labels: int) -> bool:
        return _passes(math.floor(share * labels), labels, precision, confidence)

    low, high = 0, count_fewest(precision, confidence)
    while not is_enough(high):
        low, high = high, 2 * high
        if high > _MOST_LABELS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _passes(right: int, labels: int, precision: float, confidence: float) -> bool:
    """Whether the lower bound of the precision is at least `precision`: so many right ones are improbable below it."""
    return count_tail(right, labels, precision) <= 1 - confidence
