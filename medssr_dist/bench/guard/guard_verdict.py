"""What the guard would have done in a run that went on to its end, judged by questions that the guard does not see.

A run is trained to its last step, with validation and with the guard's action `warn`. Afterwards the questions of its
validations are cut into two halves. The guard gets the first half, with the metrics of the run, and stops where it
would have stopped; the best step up to there, by the first half, is what the stage would have published. The peak is
the best step of the whole run, by the first half too. The second half says how good the two policies are: the highest
of many measured accuracies would be too high by chance, for which no guard is to blame. Nothing is sampled here, so the
same files can be judged again with other limits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medssr_dist.bench.result_file import describe_measurement
from medssr_dist.config.stage_checks import Guard
from medssr_dist.run.paths import StagePaths
from medssr_dist.training.collapse_guard import CollapseGuard, GuardAlarm
from medssr_dist.training.step_metrics import read_metrics
from medssr_dist.training.validation_log import ValidationResult, find_best, make_result, read_validations


@dataclass(frozen=True)
class GuardVerdict:
    """One judged run. Accuracies are those of the second half of the questions.

    kind: "sound" or "wrong labels". seed: of the run. stop_step: None if the guard would not have stopped. signal: what
    would have stopped it. published_step: what would have been published. peak_step: the best one of the whole run.
    published, start, last, peak: accuracies of these policies, and of the first and the last one. accuracies: [step,
    accuracy] of all. measured: date, commit and CPU.

    Example: GuardVerdict(kind="wrong labels", seed=3, stop_step=40, signal="validation_fall", published_step=20,
        peak_step=25, published=0.52, start=0.48, last=0.44, peak=0.525, accuracies=[[0, 0.48], ...],
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
    seen, unseen = _cut(results, 0), _cut(results, 1)
    alarm = find_first_alarm(paths, seen, settings)
    reached = [result for result in seen if alarm is None or result.step <= alarm.step]
    best, peak = find_best(reached) or reached[0], find_best(seen) or seen[0]
    accuracies = {result.step: result.accuracy for result in unseen}
    return GuardVerdict(
        kind,
        seed,
        stop_step=alarm.step if alarm else None,
        signal=alarm.signal if alarm else None,
        published_step=best.step,
        peak_step=peak.step,
        published=accuracies[best.step],
        start=accuracies[unseen[0].step],
        last=accuracies[unseen[-1].step],
        peak=accuracies[peak.step],
        accuracies=[[step, round(accuracy, 5)] for step, accuracy in accuracies.items()],
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


def _cut(results: list[ValidationResult], half: int) -> list[ValidationResult]:
    """Return the validations of every second question, from question `half` on."""
    return [
        replace(
            make_result(result.step, result.right[half::2], result.generations, 0.0, 0.0, result.seconds),
            invalid=result.invalid,
            truncated=result.truncated,
        )
        for result in results
    ]
