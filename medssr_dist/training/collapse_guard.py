"""The collapse guard: signs in a stage's metrics and validations that training on its own labels has begun to harm.

Self-labelled training makes a policy surer of what it thinks already. That helps while sure answers are right more
often than others, and harms later: with every intrinsic reward that was tried, accuracy rises, then falls (arXiv
2603.08660). The training reward does not show it, because it is the agreement with the labels.

Each signal compares the mean of a metric over the last `window` steps with an earlier mean over `window` steps: the
first ones, or for a signal that may rise first, the highest ones so far. Two conditions must hold: the difference is
above the limit of the config, and above 5 standard errors. The second keeps small steps, whose metrics vary much, from
raising alarms; it is so high because the highest of many windows is too high by chance. The error of a mean comes from
the mean absolute change d from one step to the next: d sqrt(pi) / 2 is the standard deviation of independent normal
values, and a slow trend hardly adds to it.

Validations are compared with the best one before them, question by question. Two in a row must lie below it, because a
sound policy has bad moments too, by more than the limit and sqrt(2^2 + 2 ln k) standard errors: the best of k equal
policies is too high by chance, by at most sqrt(2 ln k) standard deviations in the mean.

The guard has no state besides the lines of metrics.jsonl and validation.jsonl: after a restart it reads them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from medssr_dist.config.stage_checks import Guard
from medssr_dist.data.records import parse_record
from medssr_dist.run.stream import follow
from medssr_dist.training.step_metrics import StepMetrics
from medssr_dist.training.validation_log import ValidationResult

_STEP_ERRORS, _VALIDATION_ERRORS = 5.0, 2.0  # standard errors


@dataclass(frozen=True)
class GuardAlarm:
    """A signal that has passed its limit.

    step: the step after which it did. signal: the key of `training.guard`. metric: what was measured. value: its mean
    over the last steps. reference: the mean that it was compared with. limit: of the config.

    Example: GuardAlarm(step=40, signal="agreement_fall", metric="majority_agreement", value=0.61, reference=0.84,
        limit=0.15)
    """

    step: int
    signal: str
    metric: str
    value: float
    reference: float
    limit: float

    def describe(self) -> str:
        """Return the alarm in words."""
        what = self.metric if self.signal == "validation_fall" else f"the mean {self.metric} of the last steps"
        return (
            f"{what} is {self.value:.3g} after step {self.step}, it was {self.reference:.3g} "
            f"(training.guard.{self.signal} = {self.limit:g})"
        )


def read_alarms(file: Path) -> list[GuardAlarm]:
    """Read a guard.jsonl; [] if there is none."""
    return [parse_record(GuardAlarm, row, str(file)) for row in follow(file, ended=lambda: True)]


@dataclass(frozen=True)
class GuardSignal:
    """A metric that is compared with its earlier means.

    name: the key of `training.guard` that holds its limit. metric: field of StepMetrics. passes: passes(now, reference,
    limit) returns whether the limit is passed. from_highest: the reference is the highest mean, else the first one.
    """

    name: str
    metric: str
    passes: Callable[[float, float, float], bool]
    from_highest: bool = False


SIGNALS = (
    GuardSignal("agreement_fall", "majority_agreement", lambda now, then, limit: now < then - limit, from_highest=True),
    GuardSignal("vote_entropy_floor", "vote_entropy", lambda now, then, limit: now < limit * then),
    GuardSignal("letter_entropy_fall", "letter_entropy", lambda now, then, limit: now < then - limit),
    GuardSignal("length_ratio", "drawn_length", lambda now, then, limit: not then / limit <= now <= limit * then),
    GuardSignal("truncation_rise", "drawn_truncated", lambda now, then, limit: now > then + limit),
)


class CollapseGuard:
    """Watches the metrics and validations of a stage.

    Attributes:
        alarms: the first alarm of each signal, in the order in which they came.
    """

    def __init__(self, settings: Guard):
        self._settings = settings
        self._values: dict[str, list[float]] = {signal.name: [] for signal in SIGNALS}
        self._references: dict[str, float] = {}
        self.alarms: list[GuardAlarm] = []

    def see_step(self, metrics: StepMetrics) -> None:
        """Add the metrics of the next step."""
        for signal in SIGNALS:
            value, limit = getattr(metrics, signal.metric), getattr(self._settings, signal.name)
            if value is not None and math.isfinite(value) and limit:
                self._values[signal.name].append(value)
                self._check(signal, limit, metrics.step)

    def see_validations(self, results: Sequence[ValidationResult]) -> None:
        """Compare the newest two of all validations so far with the best one before them; see the head of this file."""
        limit = self._settings.validation_fall
        if not limit or len(results) < 3:
            return
        *earlier, previous, newest = results
        best = max(earlier, key=lambda result: result.accuracy)
        errors = math.sqrt(_VALIDATION_ERRORS**2 + 2 * math.log(len(earlier)))
        falls = [result.measure_fall(best) for result in (previous, newest)]
        if all(fall.accuracy > max(limit, errors * fall.error) for fall in falls):
            numbers = (newest.accuracy, best.accuracy, limit)
            self._raise_alarm(GuardAlarm(newest.step, "validation_fall", "validation_accuracy", *numbers))

    def _check(self, signal: GuardSignal, limit: float, step: int) -> None:
        values, window = self._values[signal.name], self._settings.window
        if len(values) < 2 * window:
            return
        then = self._find_reference(signal, fmean(values[-2 * window : -window]))
        now, error = fmean(values[-window:]), _estimate_deviation(values) * math.sqrt(2 / window)
        if signal.passes(now, then, limit) and abs(now - then) > _STEP_ERRORS * error:
            self._raise_alarm(GuardAlarm(step, signal.name, signal.metric, now, then, limit))

    def _find_reference(self, signal: GuardSignal, newest: float) -> float:
        """Return the mean to compare with; `newest` is the one that ends where the present window begins."""
        known = self._references.setdefault(signal.name, newest)
        if signal.from_highest:
            self._references[signal.name] = max(known, newest)
        return self._references[signal.name]

    def _raise_alarm(self, alarm: GuardAlarm) -> None:
        if alarm.signal not in [known.signal for known in self.alarms]:
            self.alarms.append(alarm)


def _estimate_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of single steps, from the changes between successive ones."""
    return fmean(abs(after - before) for before, after in pairwise(values)) * math.sqrt(math.pi) / 2
