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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from medssr_dist.data.private_files import open_private, try_lock
from medssr_dist.data.records import Record
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


class StepStatus(Record):
    """How far a step is: its state in a word, and the fields of `StepProgress`, None before the step begins.

    Example: StepStatus(step="vote", state="running", done=24, total=40, unit="questions", note="96 votes",
    seconds_per_unit=0.4, seconds_left=6.4, finished=None)
    """

    step: str
    state: Literal["off", "not begun", "running", "interrupted", "finished"]
    done: int | None = None
    total: int | None = None
    unit: str = ""
    note: str = ""
    seconds_per_unit: float | None = None
    seconds_left: float | None = None
    finished: str | None = None


class AttemptStatus(Record):
    """One attempt of a Slurm job.

    Example: AttemptStatus(number="0001", folder="runs/demo/attempts/0001", end="running", timings={}, logs=["a.log"])
    """

    number: str
    folder: str
    end: str
    timings: dict[str, float]
    logs: list[str]


class RunStatus(Record):
    """What `medssr status` shows of a run.

    Example: RunStatus(run="runs/demo", running=True, opened=1, newest="...", steps=(step,), metrics={}, attempts=(),
    problem=None, files={"runs/demo/voting": ["votes"]})

    Attributes:
        opened: how often the run was opened.
        newest: when, where and with which commit it was opened last.
        metrics: training stage -> metrics of its newest step.
        problem: the newest problem in the logs, in one line.
        files: folder -> names of its files.
    """

    run: str
    running: bool
    opened: int
    newest: str
    steps: tuple[StepStatus, ...]
    metrics: dict[str, dict[str, Any]]
    attempts: tuple[AttemptStatus, ...]
    problem: str | None
    files: dict[str, list[str]]


def print_status(run_dir: Path, as_json: bool = False) -> None:
    """Print the state of each step, the newest metrics, the attempts, the newest problem, and the files.

    Raises:
        InputError: `run_dir` is not a run directory.
    """
    status = read_status(run_dir)
    print(status.model_dump_json(indent=2) if as_json else render_status(status), end="\n" if as_json else "")


def read_status(run_dir: Path) -> RunStatus:
    """Read the status of a run from its files. Raises InputError if `run_dir` is not a run directory."""
    run = RunDir(run_dir)
    begun = run.manifest_file.exists()
    if not begun and not list_attempts(run.root):
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name one with --run-dir")
    held = begun and is_held(run)
    opened = run.read_manifest().attempts
    metrics = {stage: read_newest_metrics(run, stage) for stage in STAGES} if begun else {}
    return RunStatus(
        run=str(run.root),
        running=held,
        opened=len(opened),
        newest=f"{opened[-1].started} on {opened[-1].host}, commit {opened[-1].commit}" if opened else "",
        steps=tuple(_list_steps(run, held)) if begun else (),
        metrics={stage: found for stage, found in metrics.items() if found},
        attempts=tuple(_list_attempts(run, held)),
        problem=find_newest_problem(run),
        files=_list_files(run) if begun else {},
    )


def render_status(status: RunStatus) -> str:
    """Return the status as lines of text."""
    if not status.steps:
        lines = [f"run {status.run}: no step has begun"]
    else:
        newest = f", newest {status.newest}" if status.newest else ""
        state = "running" if status.running else "not running"
        lines = [f"run {status.run}: {state}; {status.opened} attempts{newest}"]
    lines += [f"  {step.step:<12}{_describe_step(step)}" for step in status.steps]
    lines += [f"newest metrics of {stage}: {json.dumps(found)}" for stage, found in status.metrics.items()]
    for attempt in status.attempts:
        reached = ", ".join(f"{milestone} at {seconds:.0f} s" for milestone, seconds in attempt.timings.items())
        lines.append(f"attempt {attempt.number}: {attempt.end}{f' ({reached})' if reached else ''}")
    for attempt in status.attempts[-1:]:
        lines.append(f"  {attempt.folder}: {'  '.join(attempt.logs) or 'no logs yet'}")
    lines.append(f"newest problem: {status.problem or 'none in the logs'}")
    if status.steps:
        lines += ["files:", *(f"  {folder}: {'  '.join(names)}" for folder, names in status.files.items())]
    return "\n".join(lines) + "\n"


def _list_steps(run: RunDir, held: bool) -> Iterator[StepStatus]:
    training, progress = read_recorded_config(run.root).training, read_progress(run)
    stages = {"stage1": training.stage1, "stage2": training.stage2}
    for step in RECORDED_STEPS:
        if step in stages and not stages[step].enabled:
            yield StepStatus(step=step, state="off")
        elif (found := progress.get(step)) is None:
            yield StepStatus(step=step, state="not begun")
        else:
            yield _make_step(step, found, held)


def _make_step(step: str, found: StepProgress, held: bool) -> StepStatus:
    state: Literal["finished", "running", "interrupted"]
    state = "finished" if found.finished else "running" if held else "interrupted"
    left = None
    if state == "running" and found.total is not None and found.seconds_per_unit:
        left = max(0, found.total - found.done) * found.seconds_per_unit
    return StepStatus(step=step, state=state, seconds_left=left, **vars(found))


def is_held(run: RunDir) -> bool:
    """Return whether a process holds the lock of the run. Takes a shared lock for a moment to find out."""
    file = run.lock_file
    if not file.exists():
        return False
    with open(open_private(file, os.O_RDONLY)) as lock:
        return not try_lock(lock, file, shared=True)


def _describe_step(step: StepStatus) -> str:
    if step.done is None:
        return step.state
    note = f"; {step.note}" if step.note else ""
    if step.finished:
        return f"finished at {step.finished}: {step.done:,} {step.unit}{note}"
    of_total = "" if step.total is None else f" of {step.total:,}"
    return f"{step.state} at {step.done:,}{of_total} {step.unit}{note}{_describe_pace(step)}"


def _describe_pace(step: StepStatus) -> str:
    """Describe the rate of a step and, while the run is held, its remaining time."""
    each = step.seconds_per_unit
    if not each:
        return ""
    text = f"; {each:.1f} s each" if each >= 1 else f"; {1 / each:.1f} a second"
    return text if step.seconds_left is None else f"{text}, about {format_duration(step.seconds_left)} to go"


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


def _list_files(run: RunDir) -> dict[str, list[str]]:
    """Return the names of the files in each folder; of logs, their number alone."""
    folders, found = [*(run.step(name).folder for name in RECORDED_STEPS), run.logs], {}
    for folder in filter(Path.is_dir, folders):
        names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        found[str(folder)] = [f"{len(names)} logs"] if folder == run.logs else names
    return found


def _list_attempts(run: RunDir, held: bool) -> Iterator[AttemptStatus]:
    """Yield the attempts of the job, with their ends and the times of their milestones."""
    attempts = list_attempts(run.root)
    for attempt in attempts:
        yield AttemptStatus(
            number=attempt.number,
            folder=str(attempt.folder),
            end=_describe_end(attempt, running=held and attempt is attempts[-1]),
            timings=attempt.timings,
            logs=attempt.logs,
        )


def _describe_end(attempt: Attempt, running: bool) -> str:
    if attempt.exit:
        return f"ended with {attempt.exit.code}: {attempt.exit.reason}"
    return "running" if running else "no end recorded: it is starting, or its head node was lost"
