"""What a command prints: no secret leaves the process, and nothing that an input holds steers the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from medssr_dist.errors import escape_controls
from medssr_dist.secret_registry import scrub


@contextmanager
def clean_output() -> Iterator[None]:
    """Clean what is printed in the block, on both streams: see `_CleanStream`."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:  # None: the caller has closed it
        sys.stdout = _CleanStream(sys.stdout, keeps_cursor=False)  # type: ignore[assignment]
    if sys.stderr is not None:
        sys.stderr = _CleanStream(sys.stderr, keeps_cursor=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def discard_output(stream: Any) -> None:
    """Have the rest of a stream thrown away that cannot be written; else Python fails once more as it exits."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _CleanStream:
    """A text stream that scrubs secrets and shows control characters as text.

    Args:
        keeps_cursor: let the control characters of progress bars pass.
    """

    def __init__(self, stream: TextIO, keeps_cursor: bool):
        self._stream, self._keeps_cursor = stream, keeps_cursor

    def write(self, text: str) -> int:
        clean = scrub(text)
        if not self._keeps_cursor:
            clean = escape_controls(clean, kept="\n\t")
        try:
            return self._stream.write(clean)
        except UnicodeEncodeError:  # the encoding of the terminal lacks a character, or it is half a surrogate pair
            return self._stream.write(clean.encode("ascii", "backslashreplace").decode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
