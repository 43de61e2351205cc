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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.config import Evaluation, Stage
from medssr_dist.errors import EXIT_STOPPED, InputError
from medssr_dist.jsonl import read_json
from medssr_dist.launch.attempts import attempts_of
from medssr_dist.run_dir import STEP_SECTIONS, RunDir
from medssr_dist.step_clock import duration, seconds_by_step
from medssr_dist.stream import follow, kept_at_end
from medssr_dist.voting.ledger import stored_counts
from medssr_dist.workload import benchmark_questions, stage_steps

_CHUNK = 2**20
_LOG_TAIL = 2**18  # bytes of a log that are searched, from its end
_PROBLEM = re.compile(
    r"\b\w*(Error|Exception)\b\s*[:(]|(?i:out of memory)"
    r"|\b(ERROR|FATAL|CRITICAL|Killed|Segmentation fault|No space left)\b"
)
# What multiprocessing's resource tracker prints whenever an engine is ended.
_NOISE = re.compile(r"KeyError: '/(psm_|mp-)")


@dataclass(frozen=True)
class Progress:
    """How far a step is: `done` of `total` units (None: not known before the end), and what else is to be told."""

    done: int
    total: int | None
    unit: str
    note: str = ""
    seconds_per_unit: float | None = None  # None: from the step's clock


def status(run_dir: Path) -> None:
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
    print(f"run {run.root}: {'going on' if held else 'not running'}; {len(attempts)} attempts, newest "
          f"{attempts[-1]['started']} on {attempts[-1]['host']}, commit {attempts[-1]['commit']}")  # fmt: skip
    config = read_json(run.root / "config.resolved.json")
    for step in STEP_SECTIONS:
        print(f"  {step:<12}{_step_line(run, step, manifest['steps'].get(step), config, held)}")
    for stage in ("stage1", "stage2"):
        for row in _metrics(run, stage)[-1:]:
            print(f"newest metrics of {stage}: {json.dumps(row)}")
    _print_attempts(run, held)
    print(f"newest problem: {newest_problem(run) or 'none in the logs'}")
    _print_files(run)


def _print_unbegun(run: RunDir) -> None:
    """A job whose attempts have not come as far as the first step. Raises InputError where there are none."""
    if not attempts_of(run.root):
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name one with --run-dir")
    print(f"run {run.root}: no step has been begun")
    _print_attempts(run, held=False)
    print(f"newest problem: {newest_problem(run) or 'none in the logs'}")


def is_held(run: RunDir) -> bool:
    """Whether a process holds the run. Asks with a shared lock that is given back at once."""
    file = run.root / ".lock"
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
    progress = _PROGRESS[step](run, config, begun)
    note = f"; {progress.note}" if progress.note else ""
    if begun["finished"]:
        return f"finished at {begun['finished']}: {progress.done:,} {progress.unit}{note}"
    of_total = "" if progress.total is None else f" of {progress.total:,}"
    state = "running" if held else "interrupted"
    return f"{state} at {progress.done:,}{of_total} {progress.unit}{note}{_pace(run, step, progress, held)}"


def _pace(run: RunDir, step: str, progress: Progress, held: bool) -> str:
    each = _seconds_each(run, step, progress)
    if not each:
        return ""
    text = f"; {each:.1f} s each" if each >= 1 else f"; {1 / each:.1f} a second"
    if held and progress.total is not None:
        text += f", about {duration(max(0, progress.total - progress.done) * each)} to go"
    return text


def _seconds_each(run: RunDir, step: str, progress: Progress) -> float | None:
    seconds = seconds_by_step(run.root).get(step)
    return progress.seconds_per_unit or (seconds / progress.done if seconds and progress.done else None)


def _synthesis(run: RunDir, config: dict, begun: dict) -> Progress:
    accepted, rejected = (count_lines(run.synthesis / name) for name in ("questions.jsonl", "rejected.jsonl"))
    replies = count_lines(run.synthesis / "journal.jsonl")
    note = f"{replies:,} replies, {rejected:,} rejected"
    live = run.synthesis / "progress.json"
    if live.exists():
        note += _wire(read_json(live), held=not begun["finished"])
    return Progress(accepted, config["synthesis"]["accepted"], "accepted questions", note)


def _wire(live: dict, held: bool) -> str:
    """What the client said last: spend, and while it works rate, requests in flight and endpoints in trouble."""
    text = f", {live['tokens']:,} tokens, ${live['usd']:.2f}"
    if not held:
        return text
    rate = "" if live["replies_per_s"] is None else f", {live['replies_per_s']:.1f} replies/s"
    troubled = [f"{each['name']} {each['breaker']} ({each['reason']})" for each in live["endpoints"] if each["reason"]]
    return text + f"{rate}, {live['in_flight']} in flight" + "".join(f", {trouble}" for trouble in troubled)


def _voting(run: RunDir, config: dict, begun: dict) -> Progress:
    found = stored_counts(run.voting)
    questions = count_lines(run.synthesis / "questions.jsonl")
    return Progress(found.labels, questions, "questions", f"{found.votes:,} votes, {found.kept:,} labels kept")


def _stage1(run: RunDir, config: dict, begun: dict) -> Progress:
    kept = kept_at_end(run.voting / "labeled.jsonl")
    stage = config["training"]["stage1"]
    return _stage(
        run, "stage1", stage["steps"] or (None if kept is None else stage_steps(Stage.model_validate(stage), kept))
    )


def _stage2(run: RunDir, config: dict, begun: dict) -> Progress:
    return _stage(run, "stage2", config["training"]["stage2"]["steps"] or None)


def _stage(run: RunDir, stage: str, total: int | None) -> Progress:
    rows = _metrics(run, stage)
    each = sum(row["seconds"] for row in rows) / len(rows) if rows else None
    return Progress(len(rows), total, "steps", seconds_per_unit=each)


def _evaluation(run: RunDir, config: dict, begun: dict) -> Progress:
    names = {value: name for name, value in begun["inputs"].items() if not name.startswith("benchmark ")}
    keys = {
        (row["policy"], row["question_id"], row["generation"])
        for row in _rows(run.evaluation / "answers.jsonl")
        if row["policy"] in names
    }
    by_policy = Counter(names[policy] for policy, _, _ in keys)
    note = ", ".join(f"{name} {by_policy[name]:,}" for name in names.values())
    asked = None if begun["finished"] else _questions_to_evaluate(config)
    total = asked and asked * config["evaluation"]["generations"] * len(names)
    return Progress(len(keys), total, "answers", note)


def _questions_to_evaluate(config: dict) -> int | None:
    """Distinct questions of the benchmarks; None where they cannot be read from here."""
    try:
        evaluation = Evaluation.model_validate(config["evaluation"])
        return benchmark_questions(evaluation, config["runtime"]["random_seed"])
    except (InputError, ValidationError):
        return None


_PROGRESS = {
    "synthesize": _synthesis,
    "vote": _voting,
    "stage1": _stage1,
    "stage2": _stage2,
    "evaluate": _evaluation,
}


def _rows(path: Path) -> Iterator[dict]:
    """Whole lines of a JSONL file that may be growing."""
    return follow(path, ended=lambda: True)


def _metrics(run: RunDir, stage: str) -> list[dict]:
    return list(_rows(run.training(stage) / "metrics.jsonl"))


def count_lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none. Reads in chunks: questions grow to gigabytes."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))


def newest_problem(run: RunDir) -> str | None:
    """Why the newest attempt of the job ended, if not well; else the last line that looks like an error, in the
    newest log that has one: 'file, time: line'."""
    for attempt in attempts_of(run.root)[-1:]:
        if attempt.code not in (None, 0, EXIT_STOPPED):
            return f"attempt {attempt.number} ended with {attempt.code}: {attempt.reason}"
    logs = [*run.logs.glob("*"), *run.synthesis.glob("*.log"), *run.root.glob("attempts/*/*.log")]
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
    folders = [run.synthesis, run.voting, run.training("stage1"), run.training("stage2"), run.evaluation, run.logs]
    print("files:")
    for folder in filter(Path.is_dir, folders):
        names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        shown = f"{len(names)} logs" if folder == run.logs else "  ".join(names)
        print(f"  {folder}: {shown}")


def measured(run: RunDir) -> dict[str, tuple[int, float | None]]:
    """Step -> units done and seconds each (None: not known yet), of the steps that were begun."""
    if not run.manifest_file.exists():
        return {}
    config, steps = read_json(run.root / "config.resolved.json"), run.manifest()["steps"]
    found = {step: _PROGRESS[step](run, config, begun) for step, begun in steps.items()}
    return {step: (progress.done, _seconds_each(run, step, progress)) for step, progress in found.items()}


def startup_seconds(run: RunDir) -> float:
    """What the newest attempt that had a result took to get it; 0 where none is known."""
    known = [attempt.startup_seconds for attempt in attempts_of(run.root)]
    return next((seconds for seconds in reversed(known) if seconds is not None), 0.0)


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
