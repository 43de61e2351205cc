"""How long the rest of a run takes, from rates that were measured, against the time that Slurm gives."""

from __future__ import annotations

import math
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import read_seconds_left
from medssr_dist.config.schema import Config
from medssr_dist.estimates.step_progress import measure_steps, startup_seconds
from medssr_dist.estimates.workload import estimate_workload
from medssr_dist.run.clock import duration
from medssr_dist.run.directory import STEP_SECTIONS, RunDir


def check_walltime(config: Config, run_dir: Path, rates_from: Path | None = None) -> CheckResult:
    """Compare the rest of the run with the job's limit. A longer run is cut into attempts; one that could not end
    a single unit of work (question, training step, answer) within the limit fails.

    Args:
        rates_from: an earlier run whose rates stand in for steps that this one has not begun.
    """
    left = read_seconds_left()
    limit = "no time limit known" if left is None else f"{duration(left)} left of the job's limit"
    done = measure_steps(RunDir(run_dir))
    rates = (measure_steps(RunDir(rates_from)) if rates_from else {}) | {
        step: found for step, found in done.items() if found[1] is not None
    }
    todo = _units_to_go(config, run_dir, {step: count for step, (count, _) in done.items()})
    seconds = {step: units * rates[step][1] for step, units in todo.items() if rates.get(step, (0, None))[1]}
    unknown = [step for step, units in todo.items() if units and step not in seconds]
    detail = f"{limit}; {_told(seconds, unknown)}"
    start = startup_seconds(RunDir(run_dir))
    longest = max((rates[step][1] for step, units in todo.items() if units and step in seconds), default=0.0)
    if left is not None and start + longest > left:
        fix = "ask for more with --time; no attempt would get past its start"
        return CheckResult("fail", f"{detail}; start-up {duration(start)} and one unit {duration(longest)}", fix)
    if left is not None and start + sum(seconds.values()) > left:
        attempts = math.ceil(sum(seconds.values()) / max(left - start, 1))
        return CheckResult(
            "warn", detail, f"nothing, if about {attempts} attempts are fine; else ask for more with --time"
        )
    return CheckResult("pass", detail)


def _told(seconds: dict[str, float], unknown: list[str]) -> str:
    parts = [f"{step} about {duration(needed)}" for step, needed in seconds.items()]
    if unknown:
        parts.append(f"unknown for {', '.join(unknown)} (not timed yet; --rates RUN_DIR takes an earlier run's)")
    return f"the rest of the run: {', '.join(parts) or 'nothing'}"


def _units_to_go(config: Config, run_dir: Path, done: dict[str, int]) -> dict[str, int]:
    """Step -> units of work that are left; a stage's steps and the questions at most."""
    run = RunDir(run_dir)
    begun = run.manifest()["steps"] if run.manifest_file.exists() else {}
    totals = estimate_workload(config)
    return {
        step: 0 if begun.get(step, {}).get("finished") else max(0, totals[step] - done.get(step, 0))
        for step in STEP_SECTIONS
        if step in totals
    }
