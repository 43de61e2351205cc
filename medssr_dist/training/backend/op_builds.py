"""A lock for the builds of DeepSpeed's ops (its optimizer, for example), which are compiled at first use.

torch guards such a build with a file that exists during the build. If the process is killed, the file stays, and all
later processes wait for ever. Here the guard is a file lock, which the system releases when its process ends. Each
Python environment builds in a separate folder, because two environments would overwrite each other's builds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from pathlib import Path

from torch.utils import cpp_extension

from medssr_dist.runtime.cache import make_cache_dir


def guard_op_builds() -> None:
    """Use BuildLock in this process. Call it before DeepSpeed loads an op; a given TORCH_EXTENSIONS_DIR is kept."""
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(make_cache_dir() / "torch_extensions" / environment))
    cpp_extension.FileBaton = BuildLock


class BuildLock:
    """Replaces torch's FileBaton. A second process builds too, after it gets the lock, and finds everything built.

    Args:
        path: file of FileBaton; the lock's file is this with .flock added, and is never deleted.
    """

    def __init__(self, path: str, *args: object, **kwargs: object):
        self._path = Path(f"{path}.flock")

    def try_acquire(self) -> bool:
        """Wait for the lock; return True."""
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()
