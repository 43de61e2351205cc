"""When a stage has to stop at its next step boundary: it was asked to, or another step would not end in time."""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import datetime
from pathlib import Path

from medssr_dist.config.schema import Runtime
from medssr_dist.errors import InputError, Stopped

VARIABLE = "MEDSSR_DEADLINE"
_STEPS = 5  # the longest of so many steps is what the next is expected to take
_MARGIN = 1.5  # steps and saves vary


def end_time(runtime: Runtime) -> float | None:
    """Seconds since the epoch at which the run will be ended from outside: the earlier of config and environment.

    Raises InputError for a $MEDSSR_DEADLINE that is neither seconds since the epoch nor an ISO 8601 time.
    """
    text = os.environ.get(VARIABLE, "")
    known = [runtime.deadline.timestamp()] if runtime.deadline else []
    return min([*known, *([_seconds(text)] if text else [])], default=None)


def _seconds(text: str) -> float:
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InputError(
            f"{VARIABLE} = {text!r} is no time; give seconds since the epoch or, as 2026-01-31T18:00, ISO 8601"
        ) from None


class StopSign:
    """Says to a stage whether to stop. One object in the stage's own process; the asking is done through a file.

    Args:
        file: is there once the stage is asked to stop.
        end: when it will be ended from outside, seconds since the epoch; None: never.
        save_s: what a save took in an earlier attempt, seconds; 0: not known, then a save is taken to last a step.
    """

    def __init__(self, file: Path, end: float | None = None, save_s: float = 0.0):
        self._file, self._end, self._save_s = file, end, save_s
        self._steps_s: deque[float] = deque(maxlen=_STEPS)

    def took_step(self, seconds: float) -> None:
        self._steps_s.append(seconds)

    def took_save(self, seconds: float) -> None:
        self._save_s = max(self._save_s, seconds)

    def check(self, before_step: bool = True) -> None:
        """Raise Stopped where the stage has to save and end.

        Args:
            before_step: a whole step would come next; False while one waits for its examples.
        """
        if self._file.exists():
            raise Stopped("asked to")
        step_s = max(self._steps_s, default=0.0)
        save_s = self._save_s or step_s
        needed = _MARGIN * (save_s + (step_s if before_step else 0.0))
        if self._end is not None and time.time() + needed > self._end:
            end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._end))
            raise Stopped(f"before its end time {end}: a step takes {step_s:.0f} s, a save {save_s:.0f} s")
