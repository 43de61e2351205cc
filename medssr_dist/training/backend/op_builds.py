"""DeepSpeed compiles its optimizer at first use: by one process at a time, and waited for by none in vain.

torch guards such a build by a file that says, by being there, that someone builds. A process that is killed meanwhile
leaves it behind, and every later one waits for ever. Here the guard is a lock that ends with its process. Each Python
environment builds in a folder of its own, for two of them would build over each other.
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
    """For this process, before DeepSpeed loads an op. TORCH_EXTENSIONS_DIR is left as it is where it is set."""
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(make_cache_dir() / "torch_extensions" / environment))
    cpp_extension.FileBaton = BuildLock


class BuildLock:
    """In torch's FileBaton's place. Whoever comes second builds too, once it has the lock: there is nothing left to do.

    Args:
        path: where FileBaton would put its file; the lock's has the ending .flock, and stays.
    """

    def __init__(self, path: str, *args, **kwargs):
        self._path = Path(f"{path}.flock")

    def try_acquire(self) -> bool:
        """Wait for the lock; always true."""
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()
