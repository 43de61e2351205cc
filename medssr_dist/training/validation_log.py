"""The held-out validations of a stage: the lines of its validation.jsonl, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import parse_record
from medssr_dist.run.stream import follow


@dataclass(frozen=True)
class ValidationResult:
    """The held-out accuracy of one policy: a line of validation.jsonl.

    step: the policy has been trained for so many steps. accuracy: mean share of right answers over the questions; an
    answer that names no option is wrong. error: its standard error over the questions. invalid: share of answers that
    name no option. truncated: share of answers cut off at the limit. generations: answers to each question. seconds:
    time that it took. right: right answers to each question, in the order of the data.

    Example: ValidationResult(step=20, accuracy=0.55, error=0.03, invalid=0.01, truncated=0.0, generations=4,
        seconds=8.2, right=[4, 0, 3, ...])
    """

    step: int
    accuracy: float
    error: float
    invalid: float
    truncated: float
    generations: int
    seconds: float
    right: list[int]

    def measure_fall(self, best: ValidationResult) -> Fall:
        """Return how much lower the accuracy is than that of `best`, which has answered the same questions."""
        falls = [high - low for high, low in zip(best.right, self.right, strict=True)]
        mean, error = _mean_and_error([fall / self.generations for fall in falls])
        return Fall(mean, error)


@dataclass(frozen=True)
class Fall:
    """A difference of accuracies, earlier minus later, and its standard error over the questions.

    Example: Fall(accuracy=0.04, error=0.012)
    """

    accuracy: float
    error: float


def make_result(
    step: int, right: list[int], generations: int, invalid: float, truncated: float, seconds: float
) -> ValidationResult:
    """Return the result of one validation, with the accuracy and its error computed from `right`."""
    accuracy, error = _mean_and_error([count / generations for count in right])
    return ValidationResult(step, accuracy, error, invalid, truncated, generations, seconds, right)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of `values` and its standard error; for a single value, which shows no variation, 1."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, 1.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def read_validations(file: Path) -> list[ValidationResult]:
    """Read the whole lines of a validation.jsonl; [] if there is none."""
    return [parse_record(ValidationResult, row, str(file)) for row in follow(file, ended=lambda: True)]


def append_validation(file: Path, result: ValidationResult) -> None:
    """Append a line to a validation.jsonl."""
    with JsonlLedger(file) as ledger:
        ledger.append(asdict(result))


def find_best(results: Sequence[ValidationResult]) -> ValidationResult | None:
    """Return the result with the highest accuracy; see `find_best_step`."""
    best = find_best_step({result.step: result.accuracy for result in results})
    return next((result for result in results if result.step == best), None)


def find_best_step(accuracy_by_step: Mapping[int, float]) -> int | None:
    """Return the step with the highest accuracy, the later one of equal ones; None if no trained policy has one.

    The policy that the stage began with, that of step 0, counts: a stage may make it worse.
    """
    if not any(accuracy_by_step):
        return None
    return max(accuracy_by_step, key=lambda step: (accuracy_by_step[step], step))


def count_since_best(results: Sequence[ValidationResult]) -> int:
    """Return how many validations in a row, up to now, were no better than the best one before them."""
    count, highest = 0, -1.0
    for result in results:
        count = 0 if result.accuracy > highest else count + 1
        highest = max(highest, result.accuracy)
    return count
