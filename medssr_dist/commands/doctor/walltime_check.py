"""The walltime check: does the rest of the run fit into the time that Slurm gives the job?"""

from __future__ import annotations

import math
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import read_seconds_left
from medssr_dist.config.schema import Config
from medssr_dist.estimates.step_progress import StepProgress, read_progress, read_startup_seconds
from medssr_dist.estimates.workload import estimate_workload
from medssr_dist.run.clock import format_duration
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import RECORDED_STEPS


def check_walltime(config: Config, run_dir: Path, rates_from: Path | None = None) -> CheckResult:
    """Compare the remaining time of the run with the time limit of the job.

    A run longer than the limit is a warning, because it can be split into several attempts. The check fails if the
    limit is too short for the start-up and one unit of work (a question, a training step or an answer).

    Args:
        rates_from: an earlier run, whose rates are used for steps that this run has not timed yet.
    """
    left, run = read_seconds_left(), RunDir(run_dir)
    limit = "no time limit known" if left is None else f"{format_duration(left)} left of the job's limit"
    progress = read_progress(run)
    rates = (_read_rates(read_progress(RunDir(rates_from))) if rates_from else {}) | _read_rates(progress)
    remaining = _count_remaining(config, progress)
    seconds = {step: units * rates[step] for step, units in remaining.items() if rates.get(step)}
    unknown = [step for step, units in remaining.items() if units and step not in seconds]
    detail = f"{limit}; {_describe(seconds, unknown)}"
    start = read_startup_seconds(run)
    longest = max((rates[step] for step, units in remaining.items() if units and step in seconds), default=0.0)
    if left is not None and start + longest > left:
        fix = "ask for more with --time; no attempt would get past its start"
        return CheckResult(
            "fail", f"{detail}; start-up {format_duration(start)} and one unit {format_duration(longest)}", fix
        )
    if left is not None and start + sum(seconds.values()) > left:
        attempts = math.ceil(sum(seconds.values()) / max(left - start, 1))
        fix = f"nothing, if about {attempts} attempts are fine; else ask for more with --time"
        return CheckResult("warn", detail, fix)
    return CheckResult("pass", detail)


def _read_rates(progress: dict[str, StepProgress]) -> dict[str, float]:
    """Return seconds per unit of work by step, for the steps that have been timed."""
    return {step: found.seconds_per_unit for step, found in progress.items() if found.seconds_per_unit is not None}


def _describe(seconds: dict[str, float], unknown: list[str]) -> str:
    parts = [f"{step} about {format_duration(needed)}" for step, needed in seconds.items()]
    if unknown:
        parts.append(f"unknown for {', '.join(unknown)} (not timed yet; --rates RUN_DIR takes an earlier run's)")
    return f"the rest of the run: {', '.join(parts) or 'nothing'}"


def _count_remaining(config: Config, progress: dict[str, StepProgress]) -> dict[str, int]:
    """Return the remaining units of work by step, at most."""
    totals = estimate_workload(config)
    remaining = {}
    for step in RECORDED_STEPS:
        if step in totals:
            found = progress.get(step)
            done = found.done if found else 0
            remaining[step] = 0 if found and found.finished else max(0, totals[step] - done)
    return remaining
