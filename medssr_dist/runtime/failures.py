"""How a command ends when something fails: one line for what a user can mend, a file with the traceback for a bug."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import traceback
from pathlib import Path

from medssr_dist.errors import to_line as to_line
from medssr_dist.run.paths import TRACEBACK_PREFIX
from medssr_dist.secret_registry import scrub

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
    errno.EFBIG: "a file would be larger than the limit; raise it with `ulimit -f unlimited`",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "the path is a folder; name a file",
}
# Faults that libraries report with a general class, by words of their message.
_BY_WORDS = (
    (RuntimeError, "home directory", "your home directory is not known; set HOME"),
    (KeyError, "getpwuid", "this user has no entry in the passwd file; set USER, LOGNAME and HOME"),
    (RuntimeError, "Symlink loop", "a link in a path leads back to itself; correct the path"),
    (ValueError, "embedded null byte", "a path holds a NUL; correct it"),
    (RuntimeError, "shared memory", "/dev/shm is too small; enlarge it, e.g. docker run --shm-size=8g"),
    (RuntimeError, "can't start new thread", "too many threads; raise the limit with `ulimit -u`"),
)
OPENRLHF_FIX = "run launch/install.sh, or pip install --no-deps openrlhf==0.11.2"
_TORCHVISION_FIX = "nothing here needs it: pip uninstall torchvision torchaudio torchcodec"
_PACKAGE = Path(__file__).parents[1]


def describe_foreseen(error: BaseException) -> str | None:
    """Return what is wrong and how to mend it, if `error` is a fault of the machine or of an input; None for a bug.

    Example: OSError(ENOSPC, ..., "/runs/a/votes") gives "/runs/a/votes: No space left on device; free some space ..."
    """
    if isinstance(error, BrokenPipeError):
        return "the program that reads this command's output has closed it"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("medssr_dist"):
        package = error.name.partition(".")[0]
        if package == "openrlhf":  # in no extra, because it requires flash-attn
            return f"the package openrlhf is not installed; {OPENRLHF_FIX}"
        return (
            f"the package {package} is not installed; install the tested set with launch/install.sh, or the extra: "
            "pip install 'medssr_dist[cpu]' (with GPUs: 'medssr_dist[gpu]')"
        )
    if isinstance(error, ImportError) and "torchvision" in "".join(traceback.format_exception(error)):
        return f"torchvision does not fit the torch that is installed; {_TORCHVISION_FIX}"
    if isinstance(error, socket.gaierror):
        return f"the name of a host is not known here ({error.strerror}); correct the address, or check the network"
    if isinstance(error, OSError) and error.errno in _FIXES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}; {_FIXES[error.errno]}"
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return f"text that is not valid UTF-8 ({error.reason}); save the file as UTF-8"
    if isinstance(error, RecursionError):
        return f"an input is nested too deep ({_find_place(error)}); make it flatter"
    if isinstance(error, OverflowError):
        return f"a number in an input is too large ({error}, {_find_place(error)}); correct it"
    text = str(error)
    return next((fix for kind, words, fix in _BY_WORDS if isinstance(error, kind) and words in text), None)


def describe_damage(error: Exception) -> str | None:
    """Return what a library says of a file that it cannot use, on one line; None for a fault of the machine."""
    if isinstance(error, ImportError | MemoryError) or getattr(error, "errno", None) is not None:
        return None
    return to_line(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def _find_place(error: BaseException) -> str:
    """Return the last line of this package on the way to the error. Example: "read.py line 31"."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else "in a library"


def write_traceback(error: BaseException, folder: Path | None) -> Path:
    """Write the traceback of a bug to a new file that only this user can read, and return its path.

    Args:
        folder: the run directory; the system's temporary folder where it does not exist.
    """
    place = folder if folder and folder.is_dir() else None
    handle, name = tempfile.mkstemp(prefix=TRACEBACK_PREFIX, suffix=".txt", dir=place)
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(scrub("".join(traceback.format_exception(error))))
    return Path(name)
