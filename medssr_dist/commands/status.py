"""`medssr status`: how far a run is, read from its files alone, while it is running and afterwards.

The command takes no lock, writes nothing and loads no model. It can run at any time, also on another machine if the run
directory is shared. Rates are averages over the working time of a step in all attempts (clock.json), start-up included;
the rate of a training stage is the average over its training steps.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from medssr_dist.data.private_files import open_private, try_lock
from medssr_dist.errors import EXIT_STOPPED, InputError
from medssr_dist.estimates.step_progress import StepProgress, read_newest_metrics, read_progress
from medssr_dist.launch.attempts import Attempt, list_attempts
from medssr_dist.run.clock import format_duration
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import RECORDED_STEPS, STAGES
from medssr_dist.run.recorded_config import read_recorded_config

_LOG_TAIL = 2**18  # bytes at the end of a log that are searched for a problem
_PROBLEM = re.compile(
    r"\b\w*(Error|Exception)\b\s*[:(]|(?i:out of memory)"
    r"|\b(ERROR|FATAL|CRITICAL|Killed|Segmentation fault|No space left)\b"
)
# Harmless: what the resource tracker of multiprocessing prints when an engine ends, and Ray's lines of the levels
# information and warning, which tell of every process that ends.
_NOISE = re.compile(r"KeyError: '/(psm_|mp-)|^\[[-\d]+ [\d:,]+ [IW] \d+ \d+\] ")


def print_status(run_dir: Path) -> None:
    """Print the state of each step, the newest metrics, the attempts, the newest problem, and the files.

    Raises:
        InputError: `run_dir` is not a run directory.
    """
    run = RunDir(run_dir)
    if not run.manifest_file.exists():
        _print_not_begun(run)
        return
    held = is_held(run)
    attempts = run.read_manifest().attempts
    newest = f", newest {attempts[-1].started} on {attempts[-1].host}, commit {attempts[-1].commit}" if attempts else ""
    print(f"run {run.root}: {'running' if held else 'not running'}; {len(attempts)} attempts{newest}")
    training, progress = read_recorded_config(run.root).training, read_progress(run)
    stages = {"stage1": training.stage1, "stage2": training.stage2}
    for step in RECORDED_STEPS:
        off = step in stages and not stages[step].enabled
        print(f"  {step:<12}{'off' if off else _describe_step(progress.get(step), held)}")
    for stage in STAGES:
        if metrics := read_newest_metrics(run, stage):
            print(f"newest metrics of {stage}: {json.dumps(metrics)}")
    _print_attempts(run, held)
    print(f"newest problem: {find_newest_problem(run) or 'none in the logs'}")
    _print_files(run)


def _print_not_begun(run: RunDir) -> None:
    """Print the attempts of a job that has not reached its first step.

    Raises:
        InputError: there is no attempt.
    """
    if not list_attempts(run.root):
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name one with --run-dir")
    print(f"run {run.root}: no step has begun")
    _print_attempts(run, held=False)
    print(f"newest problem: {find_newest_problem(run) or 'none in the logs'}")


def is_held(run: RunDir) -> bool:
    """Return whether a process holds the lock of the run. Takes a shared lock for a moment to find out."""
    file = run.lock_file
    if not file.exists():
        return False
    with open(open_private(file, os.O_RDONLY)) as lock:
        return not try_lock(lock, file, shared=True)


def _describe_step(progress: StepProgress | None, held: bool) -> str:
    if progress is None:
        return "not begun"
    note = f"; {progress.note}" if progress.note else ""
    if progress.finished:
        return f"finished at {progress.finished}: {progress.done:,} {progress.unit}{note}"
    of_total = "" if progress.total is None else f" of {progress.total:,}"
    state = "running" if held else "interrupted"
    return f"{state} at {progress.done:,}{of_total} {progress.unit}{note}{_describe_pace(progress, held)}"


def _describe_pace(progress: StepProgress, held: bool) -> str:
    """Describe the rate of a step and, while the run is held, its remaining time."""
    each = progress.seconds_per_unit
    if not each:
        return ""
    text = f"; {each:.1f} s each" if each >= 1 else f"; {1 / each:.1f} a second"
    if held and progress.total is not None:
        text += f", about {format_duration(max(0, progress.total - progress.done) * each)} to go"
    return text


def find_newest_problem(run: RunDir) -> str | None:
    """Return the newest problem of the run in one line, or None.

    It is the reason why the newest attempt of the job failed. If that attempt did not fail, it is the last line that
    looks like an error in the newest log that has one, as "file, time: line".
    """
    for attempt in list_attempts(run.root)[-1:]:
        if attempt.exit and attempt.exit.code not in (0, EXIT_STOPPED):
            return f"attempt {attempt.number} ended with {attempt.exit.code}: {attempt.exit.reason}"
    attempt_logs = [log for attempt in run.attempts() for log in attempt.logs()]
    logs = [*run.logs.glob("*"), *run.synthesis.folder.glob("*.log"), *attempt_logs]
    for file in sorted((log for log in logs if log.is_file()), key=lambda log: -log.stat().st_mtime):
        with open(file, "rb") as handle:
            handle.seek(max(0, file.stat().st_size - _LOG_TAIL))
            lines = handle.read().decode("utf-8", "replace").splitlines()
        found = next((line.strip() for line in reversed(lines) if _is_problem(line)), None)
        if found:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.stat().st_mtime))
            return f"{file.relative_to(run.root)}, {when}: {found[:300]}"
    return None


def _is_problem(line: str) -> bool:
    return bool(_PROBLEM.search(line)) and not _NOISE.search(line)


def _print_files(run: RunDir) -> None:
    folders = [*(run.step(name).folder for name in RECORDED_STEPS), run.logs]
    print("files:")
    for folder in filter(Path.is_dir, folders):
        names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        shown = f"{len(names)} logs" if folder == run.logs else "  ".join(names)
        print(f"  {folder}: {shown}")


def _print_attempts(run: RunDir, held: bool) -> None:
    """Print one line for each attempt of the job (its end and the times of its milestones), and the newest logs."""
    attempts = list_attempts(run.root)
    for attempt in attempts:
        reached = ", ".join(f"{milestone} at {seconds:.0f} s" for milestone, seconds in attempt.timings.items())
        end = _describe_end(attempt, running=held and attempt is attempts[-1])
        print(f"attempt {attempt.number}: {end}{f' ({reached})' if reached else ''}")
    for attempt in attempts[-1:]:
        print(f"  {attempt.folder}: {'  '.join(attempt.logs) or 'no logs yet'}")


def _describe_end(attempt: Attempt, running: bool) -> str:
    if attempt.exit:
        return f"ended with {attempt.exit.code}: {attempt.exit.reason}"
    return "running" if running else "no end recorded: it is starting, or its head node was lost"
