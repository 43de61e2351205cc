"""attempts/NNNN of a run directory: one attempt of a job, as its launcher writes it and `medssr status` reads it.

`launch.log` holds all in readable order, `<host>.<component>.log` each part, `preflight/` the reports of the nodes,
`timings.json` {milestone: seconds since the job's start}, `exit.json` {"code", "reason", "progress"} once it has ended.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.run.paths import STAGES, AttemptPaths, CheckpointPaths, RunPaths

FIRST_ENGINE, FIRST_TOKEN = "a vLLM engine is ready", "first vLLM token"
FIRST_ANSWER, FIRST_STEP = "first answer on disk", "first training step"


class Attempt:
    """One attempt's folder. `log` writes to launch.log and to the job's output."""

    def __init__(self, paths: AttemptPaths):
        self.paths, self.folder = paths, paths.folder
        self.run = RunPaths(self.folder.parents[1])

    @property
    def number(self) -> str:
        return self.folder.name

    @classmethod
    def begin(cls, run_dir: Path) -> Attempt:
        """Make the next folder, alone even if two jobs were given the same run directory."""
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
    def code(self) -> int | None:
        """Its exit code; None while it goes on, and for ever where the node died with it."""
        return _read(self.paths.exit).get("code")

    @property
    def reason(self) -> str:
        """Why it ended; "" while `code` is None."""
        return _read(self.paths.exit).get("reason", "")

    @property
    def timings(self) -> dict[str, float]:
        """Milestone -> seconds since the job's start; empty before its end."""
        return _read(self.paths.timings)

    @property
    def startup_seconds(self) -> float | None:
        """From the job's start to its first result; None where it had none."""
        timings = self.timings
        return min((timings[name] for name in (FIRST_ANSWER, FIRST_STEP) if name in timings), default=None)

    @property
    def logs(self) -> list[str]:
        """Names of its log files, sorted."""
        return [file.name for file in self.paths.logs()]

    def new_token(self) -> str:
        """A secret of this attempt, in a file that only its owner reads; Ray's and the launcher's."""
        token = secrets.token_hex(32)
        self.paths.token.touch(mode=0o600)
        self.paths.token.write_text(token)
        return token

    def log(self, who: str, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {who:<12} {text}"
        print(line, flush=True)
        with open(self.paths.log, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, code: int, reason: str) -> None:
        self.paths.token.unlink(missing_ok=True)
        write_json(self.paths.exit, {"code": code, "reason": reason, "progress": self._progress()})

    def _progress(self) -> dict[str, int]:
        """How far the run has come, in numbers that only grow.

        Of training it is the checkpoints that count: an attempt that dies before its next one writes the same metrics
        as the attempt before it.
        """
        run = self.run
        ledgers = measure_sizes(run.root, [run.synthesis.journal, run.synthesis.batches, *list_answer_files(run)])
        steps = {name: CheckpointPaths(run.stage(name).checkpoints).complete_steps() for name in STAGES}
        saved = {name: complete[-1] for name, complete in steps.items() if complete}
        states = read_json(run.manifest_file)["steps"].values() if run.manifest_file.exists() else ()
        return ledgers | saved | {"finished steps": sum(bool(state["finished"]) for state in states)}


def list_answer_files(run: RunPaths) -> list[Path]:
    """The files that get longer with every answer of an engine."""
    return [*run.voting.votes.glob("*"), run.evaluation.answers]


def measure_sizes(root: Path, files: Iterable[Path]) -> dict[str, int]:
    """Path within `root` -> bytes, of those of `files` that exist."""
    return {str(file.relative_to(root)): file.stat().st_size for file in sorted(files) if file.is_file()}


def list_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts, oldest first; none for a run that no launcher started."""
    return [Attempt(paths) for paths in RunPaths(run_dir).attempts()]


def find_unfinished(run_dir: Path) -> Attempt | None:
    """The newest attempt, where it has no recorded end."""
    newest = list_attempts(run_dir)[-1:]
    return newest[0] if newest and newest[0].code is None else None


def count_idle_attempts(run_dir: Path) -> int:
    """How many attempts in a row, the newest last, have added nothing to the run; those without an end do not count."""
    ends = [_read(paths.exit) for paths in RunPaths(run_dir).attempts()]
    found = [{}, *(end["progress"] for end in ends if end)]
    idle = 0
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if any(number > before.get(name, 0) for name, number in after.items()):
            break
        idle += 1
    return idle


def _read(file: Path) -> dict:
    """{} where the file does not exist."""
    return read_json(file) if file.exists() else {}
