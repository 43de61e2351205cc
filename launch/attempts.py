"""attempts/NNNN of a run directory: the logs of one attempt, how it ended, and what it has added to the run."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from medssr_dist.jsonl import read_json, write_json

# What grows as each step works. An attempt that adds to none of it has made no progress.
_LEDGERS = ("synthesis/journal*", "voting/votes/*", "training/*/metrics.jsonl", "evaluation/answers*")
_EXIT_FILE = "exit.json"
ANSWERS = ("voting/votes/*", "evaluation/answers*")
TRAINING_STEPS = ("training/*/metrics.jsonl",)


class Attempt:
    """One attempt's folder. `log` writes to launch.log and to the job's output."""

    def __init__(self, run_dir: Path, folder: Path):
        self.run_dir, self.folder = run_dir, folder
        self.token_file = folder / "token"

    @property
    def number(self) -> str:
        return self.folder.name

    @classmethod
    def begin(cls, run_dir: Path) -> Attempt:
        """Make the next folder, alone even if two jobs were given the same run directory."""
        parent = run_dir / "attempts"
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(folder.name) for folder in parent.iterdir() if folder.name.isdigit()), default=0)
        while True:
            number += 1
            try:
                (parent / f"{number:04}").mkdir()
            except FileExistsError:
                continue
            return cls(run_dir, parent / f"{number:04}")

    @classmethod
    def unfinished(cls, run_dir: Path) -> Attempt | None:
        """The newest attempt, where it has no recorded end."""
        folders = sorted((run_dir / "attempts").glob("[0-9]*"))
        return cls(run_dir, folders[-1]) if folders and not (folders[-1] / _EXIT_FILE).exists() else None

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
        write_json(self.folder / _EXIT_FILE, {"code": code, "reason": reason, "sizes": self.sizes()})

    def sizes(self, patterns: tuple[str, ...] = _LEDGERS) -> dict[str, int]:
        """File -> bytes, of what the steps append to."""
        files = sorted(file for pattern in patterns for file in self.run_dir.glob(pattern))
        return {str(file.relative_to(self.run_dir)): file.stat().st_size for file in files if file.is_file()}


def idle_attempts(run_dir: Path) -> int:
    """How many attempts in a row, the newest last, have added nothing to the run."""
    files = sorted((run_dir / "attempts").glob(f"[0-9]*/{_EXIT_FILE}"))
    sizes = [{}, *(read_json(file)["sizes"] for file in files)]
    idle = 0
    for before, after in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        if before != after:
            break
        idle += 1
    return idle
