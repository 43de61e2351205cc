"""The errors with which a run ends on purpose. Any other exception is a bug, and its traceback is shown."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3


class InputError(Exception):
    """An input of the user cannot be used (exit code 2). The message names the value and the fix."""


class Diverged(Exception):
    """Training met a NaN or an infinity (exit code 1). The message names step, quantity, value and what to do."""


class Stopped(Exception):
    """The run was asked to stop, for example by a signal (exit code 3). The same command resumes it."""
