"""`medssr status`: how far a run is, read from its files alone, while it goes on and after.

It takes no lock, writes nothing and loads no model, so it may be run at any time, from another machine too
if the run directory is shared. Rates are over the time that the step has worked in all attempts (clock.json),
start-up included; a training stage's are over its steps alone.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from pathlib import Path

from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import EXIT_STOPPED, InputError
from medssr_dist.estimates.step_progress import READ_PROGRESS, StepProgress, read_metrics, seconds_per_unit
from medssr_dist.launch.attempts import attempts_of
from medssr_dist.run.clock import duration
from medssr_dist.run.directory import STEP_SECTIONS, RunDir
from medssr_dist.run.paths import RECORDED_STEPS, STAGES

_LOG_TAIL = 2**18  # bytes of a log that are searched, from its end
_PROBLEM = re.compile(
    r"\b\w*(Error|Exception)\b\s*[:(]|(?i:out of memory)"
    r"|\b(ERROR|FATAL|CRITICAL|Killed|Segmentation fault|No space left)\b"
)
# What multiprocessing's resource tracker prints whenever an engine is ended.
_NOISE = re.compile(r"KeyError: '/(psm_|mp-)")


def print_status(run_dir: Path) -> None:
    """Print the state of each step, the newest metrics and problem, and where the files are.

    Raises:
        InputError: `run_dir` is no run directory.
    """
    run = RunDir(run_dir)
    if not run.manifest_file.exists():
        _print_unbegun(run)
        return
    manifest = run.manifest()
    held = is_held(run)
    attempts = manifest["attempts"]
    print(
        f"run {run.root}: {'going on' if held else 'not running'}; {len(attempts)} attempts, newest "
        f"{attempts[-1]['started']} on {attempts[-1]['host']}, commit {attempts[-1]['commit']}"
    )
    config = read_json(run.config_file)
    for step in STEP_SECTIONS:
        print(f"  {step:<12}{_step_line(run, step, manifest['steps'].get(step), config, held)}")
    for stage in STAGES:
        for row in read_metrics(run, stage)[-1:]:
            print(f"newest metrics of {stage}: {json.dumps(row)}")
    _print_attempts(run, held)
    print(f"newest problem: {find_newest_problem(run) or 'none in the logs'}")
    _print_files(run)


def _print_unbegun(run: RunDir) -> None:
    """A job whose attempts have not come as far as the first step. Raises InputError where there are none."""
    if not attempts_of(run.root):
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name one with --run-dir")
    print(f"run {run.root}: no step has been begun")
    _print_attempts(run, held=False)
    print(f"newest problem: {find_newest_problem(run) or 'none in the logs'}")


def is_held(run: RunDir) -> bool:
    """Whether a process holds the run. Asks with a shared lock that is given back at once."""
    file = run.lock_file
    if not file.exists():
        return False
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _step_line(run: RunDir, step: str, begun: dict | None, config: dict, held: bool) -> str:
    stage = config["training"].get(step)
    if stage and not stage["enabled"]:
        return "off"
    if not begun:
        return "not begun"
    progress = READ_PROGRESS[step](run, config, begun)
    note = f"; {progress.note}" if progress.note else ""
    if begun["finished"]:
        return f"finished at {begun['finished']}: {progress.done:,} {progress.unit}{note}"
    of_total = "" if progress.total is None else f" of {progress.total:,}"
    state = "running" if held else "interrupted"
    return f"{state} at {progress.done:,}{of_total} {progress.unit}{note}{_pace(run, step, progress, held)}"


def _pace(run: RunDir, step: str, progress: StepProgress, held: bool) -> str:
    each = seconds_per_unit(run, step, progress)
    if not each:
        return ""
    text = f"; {each:.1f} s each" if each >= 1 else f"; {1 / each:.1f} a second"
    if held and progress.total is not None:
        text += f", about {duration(max(0, progress.total - progress.done) * each)} to go"
    return text


def find_newest_problem(run: RunDir) -> str | None:
    """Why the newest attempt of the job ended, if not well; else the last line that looks like an error, in the
    newest log that has one: 'file, time: line'."""
    for attempt in attempts_of(run.root)[-1:]:
        if attempt.code not in (None, 0, EXIT_STOPPED):
            return f"attempt {attempt.number} ended with {attempt.code}: {attempt.reason}"
    of_attempts = [log for attempt in run.attempts() for log in attempt.logs()]
    logs = [*run.logs.glob("*"), *run.synthesis.folder.glob("*.log"), *of_attempts]
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
    """A line an attempt of the job: how it ended, and when it had its first results; the newest one's logs."""
    attempts = attempts_of(run.root)
    for attempt in attempts:
        going_on = held and attempt is attempts[-1]
        ended = "going on" if going_on else "no end recorded: it is starting, or its head was lost"
        if attempt.code is not None:
            ended = f"ended with {attempt.code}: {attempt.reason}"
        reached = ", ".join(f"{milestone} at {seconds:.0f} s" for milestone, seconds in attempt.timings.items())
        print(f"attempt {attempt.number}: {ended}{f' ({reached})' if reached else ''}")
    for attempt in attempts[-1:]:
        print(f"  {attempt.folder}: {'  '.join(attempt.logs) or 'no logs yet'}")
