"""Start-up by phase: how long after the job's start each milestone was reached."""

from __future__ import annotations

import time

from medssr_dist.data.jsonl import numbered_rows, write_json
from medssr_dist.launch.attempts import (
    ANSWERS,
    FIRST_ANSWER,
    FIRST_ENGINE,
    FIRST_STEP,
    FIRST_TOKEN,
    TRAINING_STEPS,
    Attempt,
)

_GROWING = {FIRST_ANSWER: ANSWERS, FIRST_STEP: TRAINING_STEPS}
_EVENTS = {FIRST_ENGINE: "ready", FIRST_TOKEN: "first token"}  # of the engines' lives, see docs/voting.md


class Timings:
    """Milestones of one attempt, in seconds since Slurm started the job."""

    def __init__(self, attempt: Attempt, started: float):
        self._attempt, self._started = attempt, started
        self._before = {name: attempt.sizes(patterns) for name, patterns in _GROWING.items()}
        self.reached: dict[str, float] = {}

    def mark(self, milestone: str, at: float | None = None) -> None:
        """Note that it is reached; `at`: when it was, seconds since the epoch."""
        self.reached.setdefault(milestone, round((at or time.time()) - self._started, 1))

    def look(self) -> None:
        """Mark the milestones that show in the run's files alone."""
        for milestone, event in _EVENTS.items():
            if milestone not in self.reached and (times := self._times_of(event)):
                self.mark(milestone, min(times))
        for milestone, patterns in _GROWING.items():
            if milestone not in self.reached and self._has_grown(patterns, self._before[milestone]):
                self.mark(milestone)

    def _has_grown(self, patterns: tuple[str, ...], before: dict[str, int]) -> bool:
        return any(size > before.get(file, 0) for file, size in self._attempt.sizes(patterns).items())

    def _times_of(self, event: str) -> list[float]:
        times = []
        for path in self._attempt.run_dir.glob("*/engines.jsonl"):
            with open(path, "rb") as file:
                rows = [row for _, row in numbered_rows(file, path, skip_torn=True) if row["event"] == event]
            times += [row["time"] for row in rows if row["time"] >= self._started]
        return times

    def write(self) -> None:
        """timings.json, and a table in the log: seconds since the milestone before, and since the job's start."""
        self.look()
        self.mark("end of the attempt")
        reached = dict(sorted(self.reached.items(), key=lambda item: item[1]))
        write_json(self._attempt.folder / "timings.json", reached)
        last = 0.0
        for name, seconds in reached.items():
            self._attempt.log("timings", f"{seconds - last:8.1f} s, at {seconds:8.1f} s: {name}")
            last = seconds
