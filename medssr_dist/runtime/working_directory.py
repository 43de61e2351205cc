"""Keep the files of the working directory out of the processes that a command starts.

Python and Ray look for modules there first. A random.py or numpy.py of the user would be imported instead of the
installed module, and in a checkout its packages instead of an installed wheel. For modules of your own, set PYTHONPATH
(docs/training.md).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_config import JobConfig


def import_no_local_modules() -> None:
    """Make the Python processes that this one starts import no module from their working directory."""
    os.environ["PYTHONSAFEPATH"] = "1"


class _NoFolders(list[str]):
    """Folders that Ray's workers search for modules first: `ray.init` adds the working directory, which is dropped."""

    def __bool__(self) -> bool:
        return True  # Ray would replace an empty list

    def extend(self, folders: Any) -> None:
        """Drop `folders`."""


def make_job_config() -> JobConfig:
    """Return settings for `ray.init` with which workers import no module from the working directory."""
    from ray.job_config import JobConfig

    return JobConfig(_py_driver_sys_path=_NoFolders())
