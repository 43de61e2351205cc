"""Opens files of a run directory: readable by this user alone, and never through a link that somebody has planted."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from medssr_dist.errors import InputError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_TEMPORARY = ".tmp"
_DEFAULT_ACL = "system.posix_acl_default"


def open_private(path: Path, flags: int) -> int:
    """Open a file as `os.open` does, and return its descriptor; a new file has mode 0600.

    Raises:
        InputError: it is a link, or a folder where a file belongs.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path} is a link, and files of a run are not written through links; remove it") from None
        if error.errno == errno.EISDIR:
            raise InputError(f"{path} is a folder where a file belongs; remove it") from None
        raise


def open_private_folder(folder: Path) -> None:
    """Create `folder` with mode 0700 if it is absent, and see that nobody else can put files into it.

    Default access rights that it has inherited (ACLs) are removed: they would open every new file in it to others.

    Raises:
        InputError: it belongs to another user, or others may write in it.
        OSError: it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_open(folder)
    with suppress(OSError):
        os.removexattr(folder, _DEFAULT_ACL)


def refuse_open_folders(root: Path) -> None:
    """Raise InputError if a folder below `root`, or one that a link there names, belongs to or is open to others."""
    for parent, names, _ in os.walk(root):
        for name in names:
            _refuse_open(Path(parent, name))


def _refuse_open(folder: Path) -> None:
    info = folder.stat()
    if info.st_uid != os.geteuid():
        raise InputError(
            f"{folder} belongs to user {info.st_uid}, not to {os.geteuid()}, whose process this is: its owner could "
            "change the files in it; choose a folder of your own"
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(info.st_mode)
        raise InputError(f"{folder} has mode {mode:04o}, so others may change its files; run chmod go-w {folder}")


@contextmanager
def replace_private(path: Path, flush: bool = True) -> Iterator[IO[bytes]]:
    """Open a new file under a temporary name; at the end of the block it is on disk and has the name `path`.

    After an error, `path` is as it was.

    Args:
        flush: wait until the content is on the disk; without it, a power cut may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=_TEMPORARY, dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_temporary(folder: Path) -> None:
    """Remove the files that `replace_private` has left in `folder` when its process was killed."""
    for file in folder.glob(f".*{_TEMPORARY}"):
        file.unlink(missing_ok=True)


def try_lock(file: IO[str] | int, path: Path, shared: bool = False) -> bool:
    """Lock an open file, and return whether nobody else holds it; the lock ends when the file is closed.

    Raises:
        InputError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise InputError(
                f"{path}: this file system has no file locks ({error.strerror}), so two processes could write the same "
                "run; choose a folder on another one"
            ) from None
        raise
    return True
