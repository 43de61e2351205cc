"""The errors with which a run ends on purpose. Any other exception is a bug, and leaves a file with its traceback.

Their messages are for people: one printable line of at most 500 characters, without secrets, whatever was put into it.
"""

from __future__ import annotations

from medssr_dist.secret_registry import scrub_message

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3

_LINE_CHARS = 500
_GAP = " ... "


class _EndOfRun(Exception):
    def __init__(self, message: object = ""):
        super().__init__(to_line(str(message)))


class InputError(_EndOfRun):
    """An input of the user cannot be used (exit code 2). The message names the value and the fix."""


class TrainingFailed(_EndOfRun):
    """A training stage cannot go on (exit code 1). The message names the cause; the last checkpoint is kept."""


class EnginesFailed(_EndOfRun):
    """All engines have failed, several times in a row (exit code 1). What they have answered is kept."""


class ClusterFailed(_EndOfRun):
    """Processes of Ray were killed or have crashed (exit code 1). What they had not finished is done again."""


class Diverged(TrainingFailed):
    """Training met a NaN or an infinity. The message names step, quantity, value and what to do."""


class Stopped(_EndOfRun):
    """The run was asked to stop, for example by a signal (exit code 3). The same command resumes it."""


def to_line(text: str) -> str:
    """Return `text` as one printable line of at most 500 characters, without secrets; of a longer one, both ends.

    Terminal escapes and other control characters are shown as text.
    """
    text = scrub_message(text)
    ends = text if len(text) <= 2 * _LINE_CHARS else text[:_LINE_CHARS] + text[-_LINE_CHARS:]
    line = escape_controls(ends, spaces="\n\r\t")
    if len(line) <= _LINE_CHARS and ends is text:
        return line
    half = (_LINE_CHARS - len(_GAP)) // 2
    return line[:half] + _GAP + line[-half:]


def escape_controls(text: str, spaces: str = "", kept: str = "") -> str:
    """Return `text` with its control characters shown as text, such as \\x1b.

    Args:
        spaces: control characters that become a space.
        kept: control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else " " if char in spaces else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
