"""Start-up by phase: how long after the job's start each milestone was reached."""

from __future__ import annotations

import time
from pathlib import Path

from medssr_dist.data.jsonl import enumerate_rows, write_json
from medssr_dist.launch.attempts import (
    FIRST_ANSWER,
    FIRST_ENGINE,
    FIRST_STEP,
    FIRST_TOKEN,
    Attempt,
    list_answer_files,
    measure_sizes,
)
from medssr_dist.run.paths import STAGES

_EVENTS = {FIRST_ENGINE: "ready", FIRST_TOKEN: "first token"}  # of the engines' lives, see docs/voting.md


class Timings:
    """Milestones of one attempt, in seconds since Slurm started the job."""

    def __init__(self, attempt: Attempt, started: float):
        self._attempt, self._started = attempt, started
        self._before = self._results()
        self.reached: dict[str, float] = {}

    def mark(self, milestone: str, at: float | None = None) -> None:
        """Note that it is reached; `at`: when it was, seconds since the epoch."""
        self.reached.setdefault(milestone, round((at or time.time()) - self._started, 1))

    def look(self) -> None:
        """Mark the milestones that show in the run's files alone."""
        for milestone, event in _EVENTS.items():
            if milestone not in self.reached and (times := self._times_of(event)):
                self.mark(milestone, min(times))
        for milestone, files in self._results().items():
            before = self._before[milestone]
            if milestone not in self.reached and any(size > before.get(file, 0) for file, size in files.items()):
                self.mark(milestone)

    def _results(self) -> dict[str, dict[str, int]]:
        """Milestone -> sizes of the files that grow when it is reached."""
        run = self._attempt.run
        metrics = [run.stage(name).metrics for name in STAGES]
        return {
            FIRST_ANSWER: measure_sizes(run.root, list_answer_files(run)),
            FIRST_STEP: measure_sizes(run.root, metrics),
        }

    def _times_of(self, event: str) -> list[float]:
        times = []
        run = self._attempt.run
        for path in filter(Path.exists, (run.voting.engine_events, run.evaluation.engine_events)):
            with open(path, "rb") as file:
                rows = [row for _, row in enumerate_rows(file, path, skip_torn=True) if row["event"] == event]
            times += [row["time"] for row in rows if row["time"] >= self._started]
        return times

    def write(self) -> None:
        """timings.json, and a table in the log: seconds since the milestone before, and since the job's start."""
        self.look()
        self.mark("end of the attempt")
        reached = dict(sorted(self.reached.items(), key=lambda item: item[1]))
        write_json(self._attempt.paths.timings, reached)
        last = 0.0
        for name, seconds in reached.items():
            self._attempt.log("timings", f"{seconds - last:8.1f} s, at {seconds:8.1f} s: {name}")
            last = seconds
