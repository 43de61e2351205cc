"""Shared memory of a run's vLLM processes: names that begin with the run's, and its removal, also after `kill -9`.

Python's own names (/dev/shm/psm_*, sem.mp-*) do not say whose they are, and what a killed process leaves stays until
the machine restarts. So every process of vLLM calls `use_run_names` (entry point `vllm.general_plugins` in
pyproject.toml), and a process of its own (`start_cleaner`) removes the names when the run has ended in any way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

RUN_VARIABLE = "MEDSSR_SHARED_MEMORY"  # name of the run's temporary folder, in the environment of its processes
_SHM = Path("/dev/shm")
_RANDOM_LETTERS = 8  # of a name, after the run's
_REPEATS, _PAUSE_S = 2, 2.0  # processes that are still ending may create more


def use_run_names() -> None:
    """Make this process and its children name shared memory and semaphores after the run; outside of a run, nothing."""
    from multiprocessing import process, shared_memory

    if run := os.environ.get(RUN_VARIABLE):
        prefix = f"/{_name_prefix(run)}"
        shared_memory._SHM_NAME_PREFIX = prefix
        shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + _RANDOM_LETTERS
        process.current_process()._config["semprefix"] = prefix  # children copy it


def remove_shared_memory(run: str) -> None:
    """Remove the shared memory and the semaphores that are named after a run."""
    prefix = _name_prefix(run)
    for file in (*_SHM.glob(f"{prefix}*"), *_SHM.glob(f"sem.{prefix}*")):
        with suppress(OSError):
            file.unlink()


def start_cleaner(folder: Path, lock: Path) -> None:
    """Start a process that waits until nobody holds `lock`, and removes then what the run has left.

    Args:
        folder: the run's temporary folder; its name is the run's.
    """
    command = [sys.executable, "-I", "-S", __file__, str(folder), str(lock)]
    null = subprocess.DEVNULL
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True)


def _name_prefix(run: str) -> str:
    return f"medssr_{run}_"


def _clean_after(folder: Path, lock: Path) -> None:
    with suppress(OSError), open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    shutil.rmtree(folder, ignore_errors=True)
    remove_shared_memory(folder.name)
    for _ in range(_REPEATS):
        time.sleep(_PAUSE_S)
        remove_shared_memory(folder.name)


if __name__ == "__main__":
    _clean_after(*map(Path, sys.argv[1:]))
