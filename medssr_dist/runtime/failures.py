"""How a command ends when something fails: one line for what a user can mend, a file with the traceback for a bug."""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
from pathlib import Path

from medssr_dist.run.paths import TRACEBACK_PREFIX

_LINE_CHARS = 500
# What the operating system may refuse at any place, and what a user can do about it. Faults that pass by themselves
# (EIO, ESTALE, ENOMEM) are not here: a Slurm job is to be requeued after them.
_FIXES = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "your quota there is used up: delete files, or choose another folder",
    errno.EACCES: "check the owner and the mode of that path",
    errno.EPERM: "check the owner and the mode of that path",
    errno.EROFS: "that file system is read-only; choose another folder",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n 65536`",
    errno.ENFILE: "the machine has too many open files; close other programs",
    errno.ENOLCK: "that file system has no file locks; choose a folder on another one",
    errno.EOPNOTSUPP: "that file system cannot do this; choose a folder on another one",
    errno.ENOSYS: "that file system cannot do this; choose a folder on another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link there leads back to itself",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "the path is a folder; name a file",
}


def describe_foreseen(error: BaseException) -> str | None:
    """Return what is wrong and how to mend it, if `error` is a fault of the machine or of an input; None for a bug.

    Example: OSError(ENOSPC, ..., "/runs/a/votes") gives "/runs/a/votes: No space left on device; free some space ..."
    """
    if isinstance(error, BrokenPipeError):
        return "the program that reads this command's output has closed it"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("medssr_dist"):
        package = error.name.partition(".")[0]
        return (
            f"the package {package} is not installed; install the tested set with launch/install.sh, or the extra: "
            "pip install 'medssr_dist[cpu]' (with GPUs: 'medssr_dist[gpu]')"
        )
    if isinstance(error, OSError) and error.errno in _FIXES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}; {_FIXES[error.errno]}"
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return f"text that is not valid UTF-8 ({error.reason}); save the file as UTF-8"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "your home directory is not known; set HOME"
    if isinstance(error, KeyError) and "getpwuid" in str(error):
        return f"user {os.getuid()} has no entry in the passwd file; set USER, LOGNAME and HOME"
    return None


def to_line(text: str) -> str:
    """Return `text` as one printable line of at most 500 characters, in which terminal escapes are shown as text."""
    escaped = "".join(char if char.isprintable() else _escape(char) for char in text[: 2 * _LINE_CHARS])
    shortened = len(text) > 2 * _LINE_CHARS or len(escaped) > _LINE_CHARS
    return f"{escaped[: _LINE_CHARS - 4]} ..." if shortened else escaped


def write_traceback(error: BaseException, folder: Path | None) -> Path:
    """Write the traceback of a bug to a new file that only this user can read, and return its path.

    Args:
        folder: the run directory; the system's temporary folder where it does not exist.
    """
    place = folder if folder and folder.is_dir() else None
    handle, name = tempfile.mkstemp(prefix=TRACEBACK_PREFIX, suffix=".txt", dir=place)
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        traceback.print_exception(error, file=file)
    return Path(name)


def _escape(char: str) -> str:
    return " " if char in "\n\r\t" else char.encode("unicode_escape").decode()
