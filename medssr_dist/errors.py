"""The ways a run ends early on purpose; everything else is a bug and keeps its traceback."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3


class InputError(Exception):
    """Something the user gave cannot be used. The message names the value and the fix; exit code 2."""


class Diverged(Exception):
    """Training gave a NaN or an infinity. The message names step, quantity, value and what to do; exit code 1."""


class Stopped(Exception):
    """The run was asked to stop (signal) and can be resumed by the same command; exit code 3."""
