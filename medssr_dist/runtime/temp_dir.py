"""Ray's temporary directory: one for each run, deleted at its end, with a short path, since Ray puts sockets in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from medssr_dist.data.private_files import open_private
from medssr_dist.errors import InputError
from medssr_dist.runtime.shared_memory import remove_shared_memory, start_cleaner
from medssr_dist.secret_registry import scrub_bytes

_LONGEST = 107 - 64  # a socket's path has at most 107 bytes, of which Ray adds up to 64
_NAME_LENGTH = 8  # of the folder of a run
_LONGEST_LINE = 2**20  # bytes of a log that are read at once
_LOCK = "lock"
_KEPT = ("worker-*.out", "worker-*.err", "raylet.*", "gcs_server.*", "ray_process_exit.log")


@contextmanager
def open_ray_temp_dir(logs: Path, parent: Path | None = None, log_prefix: str = "") -> Iterator[Path]:
    """Create a temporary folder for the duration of the block, in `medssr-ray-UID` below `parent` (default: TMPDIR).

    That folder is private to this user, since Ray opens its own to everybody, and holds nothing else: folders in it
    that nobody has locked are those of killed runs, and are deleted, with their shared memory. (Process ids would not
    do: containers may share /tmp.) At the end the logs are copied to `logs`, with `log_prefix` before their names.

    Raises:
        InputError: medssr-ray-UID belongs to somebody else or is a link.
    """
    home = _open_private_folder(_short_enough(parent or Path(tempfile.gettempdir())) / _home_name())
    for stale in home.glob("[!.]*"):
        if lock := _try_lock(stale):
            shutil.rmtree(stale, ignore_errors=True)
            remove_shared_memory(stale.name)
            lock.close()
    unlocked = Path(tempfile.mkdtemp(prefix=".", dir=home))  # under a name that no other run deletes
    lock = _try_lock(unlocked)
    folder = unlocked.rename(home / unlocked.name[1:])
    start_cleaner(folder, folder / _LOCK)
    try:
        yield folder
    finally:
        _keep_logs(folder, logs, log_prefix)
        remove_shared_memory(folder.name)
        if lock:
            lock.close()


def _home_name() -> str:
    return f"medssr-ray-{os.getuid()}"


def _open_private_folder(folder: Path) -> Path:
    """Create `folder` with mode 0700 if it is absent. Raises InputError if it is not this user's own folder."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(
            f"{folder} is not a folder of yours; Ray's temporary files need it: remove it, or set TMPDIR (in a Slurm "
            "job: MEDSSR_SCRATCH) to a folder that only you can write to"
        )
    folder.chmod(0o700)
    return folder


def _short_enough(parent: Path) -> Path:
    """Return `parent`, or /tmp if its path is too long for Ray's sockets."""
    return parent if len(f"{parent}/{_home_name()}/") + _NAME_LENGTH <= _LONGEST else Path("/tmp")


def _try_lock(folder: Path) -> TextIO | None:
    """Lock a run's temporary folder; None if another process holds it, or if it is none."""
    try:
        file = open(folder / _LOCK, "w")  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):  # another run of this user has just deleted it
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _keep_logs(temp_dir: Path, logs: Path, prefix: str) -> None:
    """Copy the logs that have text; a link among them is not followed. What the disk has no room for is left out."""
    for pattern in _KEPT:
        for file in temp_dir.glob(f"session_2*/logs/{pattern}"):
            with suppress(OSError, InputError):
                if not file.is_symlink() and file.stat().st_size:
                    _copy_scrubbed(file, logs / f"{prefix}{file.name}")
    shutil.rmtree(temp_dir, ignore_errors=True)


def _copy_scrubbed(file: Path, to: Path) -> None:
    """Copy a log; what a user's function prints in a worker may hold a secret."""
    to.parent.mkdir(parents=True, exist_ok=True)
    handle = open_private(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(file, "rb") as source, open(handle, "wb") as target:
        for line in iter(lambda: source.readline(_LONGEST_LINE), b""):
            target.write(scrub_bytes(line))
