"""Ray's temporary directory: a run's own, removed at its end, and short: socket paths may have 107 bytes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 107 - 64  # Ray adds up to 64 bytes
_PREFIX = "medssr-"
_KEPT = ("worker-*.out", "worker-*.err", "raylet.*", "gcs_server.*", "ray_process_exit.log")


@contextmanager
def open_ray_temp_dir(logs: Path, parent: Path | None = None, log_prefix: str = "") -> Iterator[Path]:
    """A folder in `parent` (default: the system's); its logs are kept in `logs`. Those of killed runs are removed.

    A lock tells the living from the dead: process ids mean nothing across containers that share /tmp.
    """
    parent = _short_enough(parent or Path(tempfile.gettempdir()))
    for stale in parent.glob(f"{_PREFIX}*"):
        if lock := _try_lock(stale):
            shutil.rmtree(stale, ignore_errors=True)
            lock.close()
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))  # under a name that nobody clears
    lock = _try_lock(unlocked)
    folder = unlocked.rename(parent / unlocked.name[1:])
    try:
        yield folder
    finally:
        _keep_logs(folder, logs, log_prefix)
        lock.close()


def _short_enough(parent: Path) -> Path:
    """`parent`, or /tmp where Ray's sockets would not fit below it."""
    return parent if len(str(parent)) + len(f"/{_PREFIX}") + 8 <= _LONGEST else Path("/tmp")


def _try_lock(folder: Path):
    """The locked file of a run's temporary directory; None while another process holds it, or where it is not ours."""
    try:
        if folder.lstat().st_uid != os.getuid():
            return None
        file = open(folder / "lock", "w")  # noqa: SIM115
    except FileNotFoundError:  # another run of ours has just cleared it
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
