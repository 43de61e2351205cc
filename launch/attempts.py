"""attempts/NNNN of a run directory: one attempt of a job, as its launcher writes it and `medssr status` reads it.

`launch.log` holds all in readable order, `<host>.<component>.log` each part, `preflight/` the reports of the nodes,
`timings.json` {milestone: seconds since the job's start}, `exit.json` {"code", "reason", "progress"} once it has ended.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from medssr_dist.data.jsonl import read_json, write_json

FIRST_ENGINE, FIRST_TOKEN = "a vLLM engine is ready", "first vLLM token"
FIRST_ANSWER, FIRST_STEP = "first answer on disk", "first training step"
ANSWERS = ("voting/votes/*", "evaluation/answers*")
TRAINING_STEPS = ("training/*/metrics.jsonl",)
# What is only ever appended to. Of training it is the checkpoints that count: an attempt that dies before its next
# one writes the same metrics as the one before it.
_LEDGERS = ("synthesis/journal*", "synthesis/batches.jsonl", *ANSWERS)
_CHECKPOINTS = "training/*/checkpoints/whole.json"
_EXIT_FILE = "exit.json"


class Attempt:
    """One attempt's folder. `log` writes to launch.log and to the job's output."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir = folder, folder.parents[1]
        self.token_file = folder / "token"

    @property
    def number(self) -> str:
        return self.folder.name

    @classmethod
    def begin(cls, run_dir: Path) -> Attempt:
        """Make the next folder, alone even if two jobs were given the same run directory."""
        parent = run_dir / "attempts"
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(attempt.number) for attempt in attempts_of(run_dir)), default=0)
        while True:
            number += 1
            try:
                (parent / f"{number:04}").mkdir()
            except FileExistsError:
                continue
            return cls(parent / f"{number:04}")

    @property
    def code(self) -> int | None:
        """Its exit code; None while it goes on, and for ever where the node died with it."""
        return self._read(_EXIT_FILE).get("code")

    @property
    def reason(self) -> str:
        """Why it ended; "" while `code` is None."""
        return self._read(_EXIT_FILE).get("reason", "")

    @property
    def timings(self) -> dict[str, float]:
        """Milestone -> seconds since the job's start; empty before its end."""
        return self._read("timings.json")

    @property
    def startup_seconds(self) -> float | None:
        """From the job's start to its first result; None where it had none."""
        timings = self.timings
        return min((timings[name] for name in (FIRST_ANSWER, FIRST_STEP) if name in timings), default=None)

    @property
    def logs(self) -> list[str]:
        """Names of its log files, sorted."""
        return sorted(file.name for file in self.folder.glob("*.log"))

    def _read(self, name: str) -> dict:
        return read_json(self.folder / name) if (self.folder / name).exists() else {}

    def new_token(self) -> str:
        """A secret of this attempt, in a file that only its owner reads; Ray's and the launcher's."""
        token = secrets.token_hex(32)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token)
        return token

    def log(self, who: str, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {who:<12} {text}"
        print(line, flush=True)
        with open(self.folder / "launch.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, code: int, reason: str) -> None:
        self.token_file.unlink(missing_ok=True)
        write_json(self.folder / _EXIT_FILE, {"code": code, "reason": reason, "progress": self._progress()})

    def sizes(self, patterns: tuple[str, ...]) -> dict[str, int]:
        """File of the run directory -> bytes."""
        files = sorted(file for pattern in patterns for file in self.run_dir.glob(pattern))
        return {str(file.relative_to(self.run_dir)): file.stat().st_size for file in files if file.is_file()}

    def _progress(self) -> dict[str, int]:
        """How far the run has come, in numbers that only grow."""
        steps = {file.parent.parent.name: read_json(file)["step"] for file in self.run_dir.glob(_CHECKPOINTS)}
        manifest = self.run_dir / "manifest.json"
        states = read_json(manifest)["steps"].values() if manifest.exists() else ()
        return self.sizes(_LEDGERS) | steps | {"finished steps": sum(bool(state["finished"]) for state in states)}


def attempts_of(run_dir: Path) -> list[Attempt]:
    """All attempts, oldest first; none for a run that no launcher started."""
    folders = (folder for folder in (run_dir / "attempts").glob("*") if folder.name.isdigit() and folder.is_dir())
    return [Attempt(folder) for folder in sorted(folders, key=lambda folder: int(folder.name))]


def unfinished(run_dir: Path) -> Attempt | None:
    """The newest attempt, where it has no recorded end."""
    newest = attempts_of(run_dir)[-1:]
    return newest[0] if newest and newest[0].code is None else None


def idle_attempts(run_dir: Path) -> int:
    """How many attempts in a row, the newest last, have added nothing to the run; those without an end do not count."""
    files = (attempt.folder / _EXIT_FILE for attempt in attempts_of(run_dir))
    found = [{}, *(read_json(file)["progress"] for file in files if file.exists())]
    idle = 0
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if any(number > before.get(name, 0) for name, number in after.items()):
            break
        idle += 1
    return idle
