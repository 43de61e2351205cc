"""Progress bars: drawn in place on a terminal; elsewhere, in a log file for example, a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

QUIET_S = 30.0  # off a terminal, seconds between two lines of a bar


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A tqdm. Off a terminal it writes a line every QUIET_S seconds and one at its end; none if it took no time."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._next_line = time.monotonic() + QUIET_S
        self._is_quiet = not sys.stderr.isatty()
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write its line if one is due."""
        if not self._is_quiet:
            return bool(super().display(msg, pos))
        if time.monotonic() >= self._next_line:
            self._write_line()
        return True

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Remove the drawn bar; a written line stays."""
        if not self._is_quiet:
            super().clear(*args, **kwargs)

    def close(self) -> None:
        """Draw the bar for the last time; a second call does nothing."""
        if self._is_quiet and not self.disable:
            if self.leave and self.n > self.initial:
                self._write_line()
            self.leave = False
            self.fp = _Nowhere()
        super().close()

    def _write_line(self) -> None:
        self._next_line = time.monotonic() + QUIET_S
        sys.stderr.write(f"{self}\n")
        sys.stderr.flush()


class _Nowhere:
    """Takes what tqdm writes when it closes a bar."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Do nothing."""
