"""When a stage must stop after a step: it was asked to stop, or another step would not finish in time."""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import datetime
from pathlib import Path

from medssr_dist.config.schema import Runtime
from medssr_dist.errors import InputError, Stopped

VARIABLE = "MEDSSR_DEADLINE"
_STEPS = 5  # the next step is expected to take as long as the longest of this many
_MARGIN = 1.5  # because the times of steps and saves vary


def find_end_time(runtime: Runtime) -> float | None:
    """Return when the run will be ended from outside, in seconds since the epoch; None if no end is known.

    It is the earlier one of `runtime.deadline` and $MEDSSR_DEADLINE.

    Raises:
        InputError: $MEDSSR_DEADLINE is neither seconds since the epoch nor an ISO 8601 time.
    """
    text = os.environ.get(VARIABLE, "")
    known = [runtime.deadline.timestamp()] if runtime.deadline else []
    return min([*known, *([_parse_time(text)] if text else [])], default=None)


def _parse_time(text: str) -> float:
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InputError(
            f"{VARIABLE} = {text!r} is not a time; give seconds since the epoch, or ISO 8601 such as 2026-01-31T18:00"
        ) from None


class StopSign:
    """Decides whether a stage must stop. It lives in the stage's process; others request a stop through a file.

    Args:
        file: exists when the stage was asked to stop.
        end: when the stage will be ended from outside, seconds since the epoch; None: never.
        save_s: time of a save in an earlier attempt, seconds; 0: unknown, then a save is expected to take as long as a
            step.
    """

    def __init__(self, file: Path, end: float | None = None, save_s: float = 0.0):
        self._file, self._end, self._save_s = file, end, save_s
        self._steps_s: deque[float] = deque(maxlen=_STEPS)

    def record_step(self, seconds: float) -> None:
        """Record the time of a step."""
        self._steps_s.append(seconds)

    def record_save(self, seconds: float) -> None:
        """Record the time of a save."""
        self._save_s = max(self._save_s, seconds)

    def check(self, before_step: bool = True) -> None:
        """Raise Stopped if the stage must save and end.

        Args:
            before_step: a whole step comes next; False while a step waits for its examples.
        """
        if self._file.exists():
            raise Stopped("as requested")
        step_s = max(self._steps_s, default=0.0)
        save_s = self._save_s or step_s
        needed = _MARGIN * (save_s + (step_s if before_step else 0.0))
        if self._end is not None and time.time() + needed > self._end:
            end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._end))
            raise Stopped(f"before its end time {end}: a step takes {step_s:.0f} s, a save {save_s:.0f} s")
