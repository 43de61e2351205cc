"""Wall time of each step over all attempts, in the run directory's clock.json. A kill loses at most 5 seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RunPaths

logger = logging.getLogger(__name__)

_WRITE_S = 5.0
_Seconds = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
_write_lock = threading.Lock()


@contextmanager
def time_step(run_folder: Path, step: str) -> Iterator[None]:
    """Add the seconds spent in the block to those of `step`; clock.json is updated every 5 seconds and at the end.

    Raises:
        InputError: clock.json is damaged.
    """
    finished = threading.Event()
    clock_file = RunPaths(run_folder).clock_file
    read_clock(run_folder)  # a damaged file is reported now
    ticker = threading.Thread(target=_count_seconds, args=(clock_file, step, finished), daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()


def read_clock(run_folder: Path) -> dict[str, float]:
    """Return step -> seconds over all attempts; {} before any step has run. Raises InputError for a damaged file.

    Example: {"run": 812.4, "synthesize": 101.2, "vote": 340.0, "stage1": 355.1}
    """
    file = RunPaths(run_folder).clock_file
    return read_record(_Seconds, file) if file.exists() else {}


def format_duration(seconds: float) -> str:
    """Format seconds in the unit a person would choose. Examples: "40 s", "25 min", "3.2 h"."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _count_seconds(file: Path, step: str, finished: threading.Event) -> None:
    last = time.monotonic()
    is_last = False
    while not is_last:
        is_last = finished.wait(_WRITE_S)
        now = time.monotonic()
        try:
            with _write_lock:
                seconds = read_clock(file.parent)
                write_json(file, seconds | {step: round(seconds.get(step, 0.0) + now - last, 1)})
        except (InputError, OSError) as error:  # a full disk, for example: the seconds are added at the next try
            if is_last:
                logger.warning("the time of step %s is not recorded: %s", step, error)
        else:
            last = now
