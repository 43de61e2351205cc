"""Where the collapse guard would have stopped a finished run of stage 1, and how good the published policy is then.

A run goes to its last step, with the guard's action `warn`. Afterwards the guard gets the metrics and the validations
of the run in the order of the steps, and stops where it would have stopped; the best validated step up to there is what
the stage would have published. The peak is the best validated step of the whole run. Both may be the policy that the
stage began with. The peak is the highest of several measured accuracies, so it is a little too high by chance, which
makes the comparison with it a strict one. Nothing is sampled here, so the same files can be judged again with other
limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medssr_dist.bench.result_file import describe_measurement
from medssr_dist.config.stage_checks import Guard
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.collapse_guard import CollapseGuard, GuardAlarm
from medssr_dist.training.step_metrics import read_metrics
from medssr_dist.training.validation_log import ValidationResult, find_best, read_validations


@dataclass(frozen=True)
class GuardVerdict:
    """One judged run.

    kind: "sound" or "wrong labels". seed: of the run. stop_step: None if the guard would not have stopped. signal: what
    would have stopped it. published_step: what would have been published. peak_step: the best one of the whole run.
    published, start, last, peak: held-out accuracies of these policies, and of the first and the last one. accuracies:
    [step, accuracy] of all. measured: date, commit and CPU.

    Example: GuardVerdict(kind="wrong labels", seed=3, stop_step=40, signal="validation_fall", published_step=20,
        peak_step=20, published=0.52, start=0.48, last=0.44, peak=0.52, accuracies=[[0, 0.48], ...],
        measured="2026-01-31, commit 0c1d2e3f40, AMD EPYC")
    """

    kind: str
    seed: int
    stop_step: int | None
    signal: str | None
    published_step: int
    peak_step: int
    published: float
    start: float
    last: float
    peak: float
    accuracies: list[list[float]]
    measured: str

    @property
    def is_near_peak(self) -> bool:
        """Whether the published policy is within 1 point of the best one."""
        return self.published >= self.peak - 0.01


def judge_run(stage: Path, kind: str, seed: int, settings: Guard) -> GuardVerdict:
    """Judge a finished run by its stage's folder."""
    paths = StagePaths(stage)
    results = read_validations(paths.validation)
    alarm = find_first_alarm(paths, results, settings)
    reached = [result for result in results if alarm is None or result.step <= alarm.step]
    best, peak = find_best(reached) or reached[0], find_best(results) or results[0]
    return GuardVerdict(
        kind,
        seed,
        stop_step=alarm.step if alarm else None,
        signal=alarm.signal if alarm else None,
        published_step=best.step,
        peak_step=peak.step,
        published=best.accuracy,
        start=results[0].accuracy,
        last=results[-1].accuracy,
        peak=peak.accuracy,
        accuracies=[[result.step, round(result.accuracy, 5)] for result in results],
        measured=describe_measurement(),
    )


def find_first_alarm(paths: StagePaths, results: list[ValidationResult], settings: Guard) -> GuardAlarm | None:
    """Return the first alarm of a guard that sees the stage's metrics and these validations, in the order of steps."""
    guard, seen = CollapseGuard(settings), [result for result in results if result.step == 0]
    by_step = {result.step: result for result in results}
    for metrics in read_metrics(paths.metrics):
        if metrics.step in by_step:
            seen.append(by_step[metrics.step])
            guard.see_validations(seen)
        guard.see_step(metrics)
        if guard.alarms:
            return guard.alarms[0]
    return None
