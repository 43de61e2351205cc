"""attempts/NNNN of a run directory: one attempt of a Slurm job. The launcher writes it, `medssr status` reads it."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.run.paths import STAGES, AttemptPaths, CheckpointPaths, RunPaths

FIRST_ENGINE, FIRST_TOKEN = "a vLLM engine is ready", "first vLLM token"
FIRST_ANSWER, FIRST_STEP = "first answer on disk", "first training step"


@dataclass(frozen=True)
class AttemptExit:
    """How an attempt ended: the content of exit.json.

    Example: AttemptExit(code=4, reason="node n2 (10.0.0.3) is lost: its process has ended",
    progress={"voting/votes/00000.jsonl": 81920, "stage1": 20, "finished steps": 1})

    Attributes:
        code: exit code of the launcher.
        reason: one line.
        progress: how far the run had come: bytes of each file that only grows, step of the newest complete checkpoint
            of each stage, number of finished steps.
    """

    code: int
    reason: str
    progress: dict[str, int] = field(default_factory=dict)


class Attempt:
    """One attempt of a job, and its folder."""

    def __init__(self, paths: AttemptPaths):
        self.paths, self.folder = paths, paths.folder
        self.run = RunPaths(self.folder.parents[1])

    @property
    def number(self) -> str:
        """Four digits or more, e.g. "0001"."""
        return self.folder.name

    @classmethod
    def begin(cls, run_dir: Path) -> Attempt:
        """Create the next attempt's folder. No other job gets it, even if two jobs use the same run directory."""
        parent = RunPaths(run_dir).attempts_folder
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(attempt.number) for attempt in list_attempts(run_dir)), default=0)
        while True:
            number += 1
            try:
                (parent / f"{number:04}").mkdir()
            except FileExistsError:
                continue
            return cls(AttemptPaths(parent / f"{number:04}"))

    @property
    def exit(self) -> AttemptExit | None:
        """How it ended; None while it is running, and forever if its node died."""
        if not self.paths.exit.exists():
            return None
        row = _read_object(self.paths.exit)
        progress = row.get("progress", {})
        if not isinstance(progress, dict) or not all(isinstance(size, int) for size in progress.values()):
            raise InputError(f"{self.paths.exit} is damaged (progress); remove it")
        if not isinstance(row.get("code"), int) or not isinstance(row.get("reason"), str):
            raise InputError(f"{self.paths.exit} is damaged (code or reason); remove it")
        return AttemptExit(row["code"], row["reason"], progress)

    @property
    def timings(self) -> dict[str, float]:
        """Milestone -> seconds since the job's start; {} before the attempt's end."""
        timings = _read_object(self.paths.timings) if self.paths.timings.exists() else {}
        if not all(isinstance(seconds, int | float) and math.isfinite(seconds) for seconds in timings.values()):
            raise InputError(f"{self.paths.timings} is damaged (seconds that are no finite number); remove it")
        return timings

    @property
    def startup_seconds(self) -> float | None:
        """Seconds from the job's start to its first result; None if it had no result."""
        timings = self.timings
        return min((timings[name] for name in (FIRST_ANSWER, FIRST_STEP) if name in timings), default=None)

    @property
    def logs(self) -> list[str]:
        """Names of its log files, sorted."""
        return [file.name for file in self.paths.logs()]

    def create_token(self) -> str:
        """Write a new secret for this attempt's Ray and launcher to a file that only its owner can read; return it."""
        token = secrets.token_hex(32)
        self.paths.token.touch(mode=0o600)
        self.paths.token.write_text(token)
        return token

    def log(self, sender: str, text: str) -> None:
        """Append a line to launch.log and to the job's output."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sender:<12} {text}"
        print(line, flush=True)
        with open(self.paths.log, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, end: AttemptExit) -> None:
        """Delete the token and write exit.json, with the progress measured now."""
        self.paths.token.unlink(missing_ok=True)
        write_json(self.paths.exit, asdict(replace(end, progress=_measure_progress(self.run))))


def list_attempts(run_dir: Path) -> list[Attempt]:
    """Return all attempts, oldest first; [] for a run that no launcher has started."""
    return [Attempt(paths) for paths in RunPaths(run_dir).attempts()]


def find_unfinished(run_dir: Path) -> Attempt | None:
    """Return the newest attempt if it has no recorded end, else None."""
    newest = list_attempts(run_dir)[-1:]
    return newest[0] if newest and newest[0].exit is None else None


def count_idle_attempts(run_dir: Path) -> int:
    """Count the newest attempts in a row that have made no progress. Attempts without a recorded end are ignored."""
    ends = [attempt.exit for attempt in list_attempts(run_dir)]
    progress = [{}, *(end.progress for end in ends if end)]
    idle = 0
    for before, after in zip(reversed(progress[:-1]), reversed(progress[1:]), strict=True):
        if any(number > before.get(name, 0) for name, number in after.items()):
            break
        idle += 1
    return idle


def _measure_progress(run: RunPaths) -> dict[str, int]:
    """Measure how far the run has come, in numbers that only grow.

    Training counts by its complete checkpoints, not by its metrics: an attempt that dies before its next checkpoint
    writes the same metrics as the attempt before it.
    """
    ledgers = measure_sizes(run.root, [run.synthesis.journal, run.synthesis.batches, *list_answer_files(run)])
    steps = {name: CheckpointPaths(run.stage(name).checkpoints).complete_steps() for name in STAGES}
    saved = {name: complete[-1] for name, complete in steps.items() if complete}
    return ledgers | saved | {"finished steps": sum(read_step_states(run).values())}


def read_step_states(run: RunPaths) -> dict[str, bool]:
    """Return whether each recorded step that was begun is finished, from manifest.json.

    Example: {"synthesize": True, "vote": False}
    """
    if not run.manifest_file.exists():
        return {}
    steps = _read_object(run.manifest_file).get("steps")
    if not isinstance(steps, dict) or not all(isinstance(step, dict) for step in steps.values()):
        raise InputError(f"{run.manifest_file} is damaged (steps); put back a good copy")
    return {name: bool(step.get("finished")) for name, step in steps.items()}


def _read_object(file: Path) -> dict[str, Any]:
    row = read_json(file)
    if not isinstance(row, dict):
        raise InputError(f"{file} is a {type(row).__name__}, not a JSON object; put back a good copy, or remove it")
    return row


def list_answer_files(run: RunPaths) -> list[Path]:
    """Return the files that grow with every answer of an engine: votes and answers of the evaluation."""
    return [*run.voting.votes.glob("*"), run.evaluation.answers]


def measure_sizes(root: Path, files: Iterable[Path]) -> dict[str, int]:
    """Return path within `root` -> bytes, for those of `files` that exist."""
    return {str(file.relative_to(root)): file.stat().st_size for file in sorted(files) if file.is_file()}
