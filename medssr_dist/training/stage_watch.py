"""Follows a stage's metrics and validations: whether the stage ends early, and which of its policies it publishes.

All decisions follow from the files of the stage, so a stage that is resumed decides as if it had not been interrupted:
validation.jsonl, metrics.jsonl, and the exports hf_best<step>, which are the candidates for publication.

- With validation, a policy is a candidate if its accuracy is the best so far, and the best one is published. The policy
  that the stage began with, that of step 0, is one of them: if the stage makes it worse, nothing worse is published.
- As long as no step was validated, but with a guard that may stop the stage, the policy at every checkpoint is a
  candidate, and that of step 0. A signal is a mean over a window of steps, so what it shows began within the window: if
  the guard stops the stage, the newest candidate before the window is published.
- In all other cases the last policy is published.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from medssr_dist.data.jsonl import write_jsonl
from medssr_dist.training.collapse_guard import CollapseGuard
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.step_metrics import StepMetrics, read_metrics
from medssr_dist.training.validation_log import (
    ValidationResult,
    append_validation,
    count_since_best,
    find_best,
    read_validations,
)


class StageWatch:
    """The validations and the guard of a stage.

    Attributes:
        results: all validations so far.
        ended_by: why the stage ends before its last step; "" while it goes on.
    """

    def __init__(self, job: StageJob):
        self._paths, validation = job.paths, job.config.training.validation
        self._patience = validation.patience if validation else 0
        settings = job.config.training.find_guard(job.name)
        self._guard = CollapseGuard(settings) if settings else None
        self._may_stop = settings is not None and settings.action == "stop"
        self._window = settings.window if settings else 0
        self.results: list[ValidationResult] = []
        self.ended_by = ""
        for result in read_validations(job.paths.validation):
            self._see_result(result)
        for metrics in read_metrics(job.paths.metrics):
            self._see_step(metrics)
        self._write_alarms()

    def add_result(self, result: ValidationResult) -> None:
        """Record a validation."""
        append_validation(self._paths.validation, result)
        self._see_result(result)
        self._write_alarms()

    def add_step(self, metrics: StepMetrics) -> None:
        """Take in the metrics of a step, whose line has been written."""
        self._see_step(StepMetrics.from_row(metrics.as_row()))  # as rounded as after a restart
        self._write_alarms()

    def find_accuracy(self, step: int) -> float | None:
        """Return the validated accuracy of the policy after `step` steps; None if it was not validated."""
        return next((result.accuracy for result in self.results if result.step == step), None)

    @property
    def keeps_start(self) -> bool:
        """Whether the policy that the stage begins with must be exported as a candidate."""
        return bool(self.results) or self._may_stop

    def is_candidate(self, step: int, is_saved: bool) -> bool:
        """Return whether the policy after `step` steps, the newest one, must be exported as a candidate.

        Args:
            is_saved: the step has a checkpoint.
        """
        if best := find_best(self.results):
            return best.step == step
        return is_saved and self._may_stop and not self.ended_by

    def choose(self, last_step: int) -> int:
        """Return the step whose policy is published: a candidate, or `last_step`, also if the best one is lost."""
        best, needed = find_best(self.results), self._list_needed(last_step)
        if best is None:
            return needed[0] if needed and self._may_stop and self.ended_by else last_step
        return best.step if best.step in needed else last_step

    def delete_candidates(self, last_step: int) -> None:
        """Delete the candidates that will not be published whatever follows. Call it after a checkpoint.

        Before it, a restart would resume from an earlier step, and may need them.
        """
        needed = self._list_needed(last_step)
        for step in self._paths.candidates():
            if step not in needed:
                self._paths.delete_candidate(step)

    def _list_needed(self, last_step: int) -> list[int]:
        """Return the steps of the candidates that may be published, the one that would be published now first."""
        candidates = self._paths.candidates()
        if best := find_best(self.results):
            return [step for step in candidates if step == best.step]
        before = [step for step in candidates if step <= last_step - self._window]
        start = before[:1] if self.results else []  # a validation may show that no trained policy is better
        return [*before[-1:], *candidates[len(before) :], *start]

    def _see_result(self, result: ValidationResult) -> None:
        self.results.append(result)
        if self._guard:
            self._guard.see_validations(self.results)
        since_best = count_since_best(self.results)
        if self._patience and since_best >= self._patience:
            self.ended_by = self.ended_by or (
                f"validation: the accuracy after step {result.step} is {result.accuracy:.3f}, and the last "
                f"{since_best} validations were no better than the best (training.validate.patience = {self._patience})"
            )
        self._end_on_alarm()

    def _see_step(self, metrics: StepMetrics) -> None:
        if self._guard:
            self._guard.see_step(metrics)
        self._end_on_alarm()

    def _end_on_alarm(self) -> None:
        if self._guard and self._guard.alarms and self._may_stop:
            self.ended_by = self.ended_by or f"guard: {self._guard.alarms[0].describe()}"

    def _write_alarms(self) -> None:
        alarms = self._guard.alarms if self._guard else []
        if alarms or self._paths.guard.exists():
            write_jsonl(self._paths.guard, map(asdict, alarms))


def copy_model(source: Path, target: Path) -> Path:
    """Copy the model folder `source` to `target`, which shares its files where the file system can; return `target`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_or_copy)
    return target


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)
