"""Start-up by phase: how long after the job's start each milestone was reached."""

from __future__ import annotations

import time

from medssr_dist.jsonl import write_json
from medssr_dist.launch.attempts import ANSWERS, FIRST_ANSWER, FIRST_STEP, TRAINING_STEPS, Attempt

_WATCHED = {FIRST_ANSWER: ANSWERS, FIRST_STEP: TRAINING_STEPS}


class Timings:
    """Milestones of one attempt, in seconds since Slurm started the job."""

    def __init__(self, attempt: Attempt, started: float):
        self._attempt, self._started = attempt, started
        self._before = {name: attempt.sizes(patterns) for name, patterns in _WATCHED.items()}
        self.reached: dict[str, float] = {}

    def mark(self, milestone: str) -> None:
        self.reached.setdefault(milestone, round(time.time() - self._started, 1))

    def look(self) -> None:
        """Mark the milestones that show in the run's files alone."""
        for name, patterns in _WATCHED.items():
            if name not in self.reached and self._attempt.sizes(patterns) != self._before[name]:
                self.mark(name)

    def write(self) -> None:
        """timings.json, and a table in the log: seconds since the milestone before, and since the job's start."""
        self.mark("end of the attempt")
        write_json(self._attempt.folder / "timings.json", self.reached)
        last = 0.0
        for name, seconds in self.reached.items():
            self._attempt.log("timings", f"{seconds - last:8.1f} s, at {seconds:8.1f} s: {name}")
            last = seconds
