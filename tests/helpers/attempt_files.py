"""Attempts of a job, as the launcher writes them."""

from __future__ import annotations

from medssr_dist.launch.attempts import Attempt
from medssr_dist.launch.timings import Timings


def write_timings(attempt: Attempt, seconds: dict[str, float]) -> None:
    """Write the milestones of `attempt`, in seconds since the start of its job."""
    timings = Timings(attempt, started=0.0)
    for milestone, reached in seconds.items():
        timings.record(milestone, at=reached)
    timings.write()
