"""The user's cache directory, for what is costly to make but can be made again: indexes and converted models."""

from __future__ import annotations

import os
from pathlib import Path

from medssr_dist.errors import InputError


def make_cache_dir() -> Path:
    """Return $MEDSSR_CACHE, or ~/.cache/medssr_dist; create it on first use, readable by its owner only.

    Raises:
        InputError: the directory cannot be created.
    """
    path = Path(os.environ.get("MEDSSR_CACHE") or "~/.cache/medssr_dist").expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the cache directory {path} ({error.strerror}); set MEDSSR_CACHE to a writable directory"
        ) from None
    return path
