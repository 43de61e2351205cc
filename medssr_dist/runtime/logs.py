"""Where this package's log lines go: to stderr, above the progress bars."""

from __future__ import annotations

import logging
import sys

from medssr_dist.errors import escape_controls

PACKAGE_LOGGER = "medssr_dist"


def set_up_logging() -> None:
    """Show the package's log lines on stderr, from INFO upwards; a second call changes nothing.

    An INFO line appears as it is, a higher one behind its level: `warning: index ... does not match its corpus`.
    Loggers of other packages keep their levels and handlers. Call it at the start of a process that a user watches;
    in a process that never calls it (a Ray worker, for example), Python's defaults apply: warnings alone, on stderr.
    """
    logger = logging.getLogger(PACKAGE_LOGGER)
    if any(isinstance(handler, _AboveBars) for handler in logger.handlers):
        return
    handler = _AboveBars()
    handler.setFormatter(_PlainLine())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that calls logging.basicConfig would show each line twice


class _PlainLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = escape_controls(super().format(record), kept="\n\t")
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"


class _AboveBars(logging.Handler):
    """Writes through tqdm, which clears its progress bars for the line and draws them again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
