"""Ray's temporary directory: one for each run, deleted at its end, with a short path, since Ray puts sockets in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_LONGEST = 107 - 64  # a socket's path has at most 107 bytes, of which Ray adds up to 64
_PREFIX = "medssr-"
_KEPT = ("worker-*.out", "worker-*.err", "raylet.*", "gcs_server.*", "ray_process_exit.log")


@contextmanager
def open_ray_temp_dir(logs: Path, parent: Path | None = None, log_prefix: str = "") -> Iterator[Path]:
    """Create a temporary folder in `parent` (default: the system's) for the duration of the block.

    At the end its logs are copied to `logs`, with `log_prefix` before their names. Folders of killed runs are deleted:
    nobody holds their lock. (Process ids would not do: containers may share /tmp.)
    """
    parent = _short_enough(parent or Path(tempfile.gettempdir()))
    for stale in parent.glob(f"{_PREFIX}*"):
        if lock := _try_lock(stale):
            shutil.rmtree(stale, ignore_errors=True)
            lock.close()
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))  # under a name that no other run deletes
    lock = _try_lock(unlocked)
    folder = unlocked.rename(parent / unlocked.name[1:])
    try:
        yield folder
    finally:
        _keep_logs(folder, logs, log_prefix)
        if lock:
            lock.close()


def _short_enough(parent: Path) -> Path:
    """Return `parent`, or /tmp if its path is too long for Ray's sockets."""
    return parent if len(str(parent)) + len(f"/{_PREFIX}") + 8 <= _LONGEST else Path("/tmp")


def _try_lock(folder: Path) -> TextIO | None:
    """Lock a run's temporary folder; None if another process holds it, or if another user owns the folder."""
    try:
        if folder.lstat().st_uid != os.getuid():
            return None
        file = open(folder / "lock", "w")  # noqa: SIM115
    except FileNotFoundError:  # another run of this user has just deleted it
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _keep_logs(temp_dir: Path, logs: Path, prefix: str) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for pattern in _KEPT:
        for file in temp_dir.glob(f"session_2*/logs/{pattern}"):
            if file.stat().st_size:
                shutil.copy(file, logs / f"{prefix}{file.name}")
    shutil.rmtree(temp_dir, ignore_errors=True)
