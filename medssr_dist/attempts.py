"""The attempts of a job, as its launcher leaves them in the run directory: one folder each, `attempts/0001`, ...

`exit.json` holds {"code", "reason"} once the attempt has ended, `timings.json` {milestone: seconds since the job's
start}, `launch.log` all in readable order, `<host>.<component>.log` each part, `preflight/` the reports of the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medssr_dist.jsonl import read_json
from medssr_dist.launch.timings import FIRST_ANSWER, FIRST_STEP


@dataclass(frozen=True)
class Attempt:
    """One attempt. `code` is None while it goes on, and for ever where the node died with it."""

    folder: Path
    code: int | None
    reason: str
    timings: dict[str, float]

    @property
    def startup_seconds(self) -> float | None:
        """From the job's start to its first result; None where it had none."""
        return min((self.timings[name] for name in (FIRST_ANSWER, FIRST_STEP) if name in self.timings), default=None)

    @property
    def logs(self) -> list[str]:
        """Names of its log files, sorted."""
        return sorted(file.name for file in self.folder.glob("*.log"))


def read_attempts(run_folder: Path) -> list[Attempt]:
    """All attempts, oldest first; none for a run that no launcher started."""
    folders = sorted(folder for folder in (run_folder / "attempts").glob("[0-9]*") if folder.is_dir())
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Attempt:
    end = _json(folder / "exit.json")
    return Attempt(folder, end.get("code"), end.get("reason", ""), _json(folder / "timings.json"))


def _json(file: Path) -> dict:
    return read_json(file) if file.exists() else {}
