"""Start-up by phase: when each milestone was reached, in seconds since the job's start."""

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

_ENGINE_EVENTS = {FIRST_ENGINE: "ready", FIRST_TOKEN: "first token"}  # in engines.jsonl, see docs/voting.md


class Timings:
    """Milestones of one attempt.

    Args:
        started: when Slurm started the job, seconds since the epoch.

    Attributes:
        reached: milestone -> seconds since the job's start.
    """

    def __init__(self, attempt: Attempt, started: float):
        self._attempt, self._started = attempt, started
        self._sizes_before = self._measure_results()
        self.reached: dict[str, float] = {}

    def record(self, milestone: str, at: float | None = None) -> None:
        """Record that `milestone` is reached, now or `at` seconds since the epoch. Only the first call counts."""
        self.reached.setdefault(milestone, round((at or time.time()) - self._started, 1))

    def record_from_files(self) -> None:
        """Record the milestones that only the run's files show."""
        for milestone, event in _ENGINE_EVENTS.items():
            if milestone not in self.reached and (times := self._read_event_times(event)):
                self.record(milestone, min(times))
        for milestone, files in self._measure_results().items():
            before = self._sizes_before[milestone]
            if milestone not in self.reached and any(size > before.get(file, 0) for file, size in files.items()):
                self.record(milestone)

    def write(self) -> None:
        """Write timings.json, and a table to the log: seconds since the milestone before and since the job's start."""
        self.record_from_files()
        self.record("end of the attempt")
        reached = dict(sorted(self.reached.items(), key=lambda item: item[1]))
        write_json(self._attempt.paths.timings, reached)
        last = 0.0
        for name, seconds in reached.items():
            self._attempt.log("timings", f"{seconds - last:8.1f} s, at {seconds:8.1f} s: {name}")
            last = seconds

    def _measure_results(self) -> dict[str, dict[str, int]]:
        """Return milestone -> sizes of the files that grow when it is reached."""
        run = self._attempt.run
        metrics = [run.stage(name).metrics for name in STAGES]
        answers = list_answer_files(run)
        return {FIRST_ANSWER: measure_sizes(run.root, answers), FIRST_STEP: measure_sizes(run.root, metrics)}

    def _read_event_times(self, event: str) -> list[float]:
        """Return when engines of this job reported `event`, seconds since the epoch."""
        run, times = self._attempt.run, []
        for path in filter(Path.exists, (run.voting.engine_events, run.evaluation.engine_events)):
            with open(path, "rb") as file:
                rows = [row for _, row in enumerate_rows(file, path, skip_torn=True) if row["event"] == event]
            times += [row["time"] for row in rows if row["time"] >= self._started]
        return times
