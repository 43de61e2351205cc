"""The command lines that `ps` shows."""

from __future__ import annotations

from pathlib import Path


def command_lines() -> str:
    """Return the command line of every visible process, one per line."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_text(errors="replace"))
        except OSError:  # it has ended meanwhile
            continue
    return "\n".join(lines)
