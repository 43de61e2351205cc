"""Wall time of each step over all attempts, in the run directory's clock.json; a kill loses a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.run.paths import RunPaths

_EVERY_S = 5.0
_writing = threading.Lock()


@contextmanager
def time_step(run_folder: Path, step: str) -> Iterator[None]:
    """Add the time spent in the block to `step`'s seconds, as it passes."""
    finished = threading.Event()
    ticker = threading.Thread(target=_tick, args=(RunPaths(run_folder).clock_file, step, finished), daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()


def read_clock(run_folder: Path) -> dict[str, float]:
    """Step -> seconds; empty before any step has run."""
    file = RunPaths(run_folder).clock_file
    return read_json(file) if file.exists() else {}


def format_duration(seconds: float) -> str:
    """As people say it: 40 s, 25 min, 3.2 h."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _tick(file: Path, step: str, finished: threading.Event) -> None:
    last = time.monotonic()
    ended = False
    while not ended:
        ended = finished.wait(_EVERY_S)
        now = time.monotonic()
        with _writing:
            seconds = read_clock(file.parent)
            write_json(file, seconds | {step: round(seconds.get(step, 0.0) + now - last, 1)})
        last = now
