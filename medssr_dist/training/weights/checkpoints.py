"""A stage's checkpoints on disk: each is written, verified and marked complete before older ones are deleted.

DeepSpeed updates its pointer, the file `latest`, before all ranks have written their shards, and OpenRLHF deletes old
checkpoints before the new one exists. Here a checkpoint is written to `global_stepN.partial`. When every rank has
verified its files, `complete.json` is added and the folder is renamed to `global_stepN`. A folder of that name is
therefore complete, even if a process was killed at any moment. `recover_checkpoint` deletes everything else before the
stage resumes.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medssr_dist.data.checksums import compute_file_checksum
from medssr_dist.data.jsonl import sync_folder, write_atomic, write_json
from medssr_dist.data.private_files import open_private
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths, complete_mark

logger = logging.getLogger(__name__)

_READERS = 8  # threads that read files of a checkpoint
_DELETED = ".deleted"  # suffix of a folder that is being deleted
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint, as it was read back. Example: StoredFile(size=1024, crc32="0a1b2c3d")"""

    size: int
    crc32: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the content of its complete.json.

    step: finished steps. ranks: number of ZeRO-3 ranks that wrote it. reward: mean over the steps since the previous
    checkpoint. seconds: time of writing and verifying. files: name -> size in bytes. checksums: name -> CRC-32 of the
    file; {} in checkpoints of earlier versions. accuracy: held-out, of this very policy; None if it
    was not validated.

    Example: Checkpoint(step=20, ranks=2, reward=0.31, seconds=4.2, files={"zero_pp_rank_0_mp_rank_00_...": 1024})
    """

    step: int
    ranks: int
    reward: float
    seconds: float
    files: dict[str, int] = field(repr=False)
    checksums: dict[str, str] = field(default_factory=dict, repr=False)
    accuracy: float | None = None

    @property
    def rank(self) -> tuple[float, float, int]:
        """What the best checkpoint has the highest of: validated accuracy, then reward, then step."""
        return (-1.0 if self.accuracy is None else self.accuracy), self.reward, self.step

    def is_whole(self, folder: Path) -> bool:
        """Return whether all its files are in `folder` and have their original sizes."""
        files = {name: folder / name for name in self.files}
        return all(file.is_file() and file.stat().st_size == self.files[name] for name, file in files.items())

    def is_intact(self, folder: Path) -> bool:
        """Return whether it is whole and all its files have their checksums. Reads the files."""
        if not self.is_whole(folder):
            return False
        with ThreadPoolExecutor(_READERS) as readers:
            return all(readers.map(lambda name: self._is_sound(folder / name), self.files))

    def _is_sound(self, file: Path) -> bool:
        if file.name in self.checksums:
            return compute_file_checksum(file) == self.checksums[file.name]
        try:  # of an earlier version: torch's own checksums, of the tensors alone
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError):
            return False


def list_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """Return the complete checkpoints in the folder `checkpoints`, oldest first."""
    paths = CheckpointPaths(checkpoints)
    return [read_record(Checkpoint, complete_mark(paths.at(step))) for step in paths.complete_steps()]


def recover_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, after DeepSpeed's pointer is set to it; None if there is none.

    Files of interrupted saves are deleted. A checkpoint that has lost files, or whose files have changed, is skipped
    and deleted, with a warning: what it holds would run as code if it were loaded.
    """
    paths = CheckpointPaths(checkpoints)
    intact: list[Checkpoint] = []
    for step in reversed(paths.complete_steps()):
        folder = paths.at(step)
        try:
            checkpoint = read_record(Checkpoint, complete_mark(folder))
        except InputError as error:
            logger.warning("%s; the checkpoint before it is used", error)
            continue
        # Only the one that is loaded is read as a whole.
        if checkpoint.is_whole(folder) if intact else checkpoint.is_intact(folder):
            intact.insert(0, checkpoint)
        else:
            logger.warning("checkpoint %s has lost files or is damaged; the one before it is used", folder)
    if not intact:
        shutil.rmtree(paths.ranks, ignore_errors=True)
        return None
    _delete_others(paths, intact)
    write_atomic(paths.latest, paths.at(intact[-1].step).name)
    return intact[-1]


def _delete_others(paths: CheckpointPaths, checkpoints: list[Checkpoint]) -> None:
    kept = {paths.at(checkpoint.step) for checkpoint in checkpoints}
    for found in paths.ranks.iterdir():
        if found.is_dir() and found not in kept:
            _delete(found)


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint, or as much of it as the file system allows now; the rest is deleted after the next save.

    NFS, for example, keeps a folder as long as a process has one of its files open. The folder is renamed first: what
    is left of it is no checkpoint.
    """
    rest = checkpoint if checkpoint.suffix == _DELETED else checkpoint.with_name(f"{checkpoint.name}{_DELETED}")
    try:
        checkpoint.replace(rest)
        shutil.rmtree(rest)
    except OSError as error:
        logger.warning("%s cannot be deleted yet (%s); it is tried again after the next save", rest, error.strerror)


class CheckpointKeeper:
    """Writes a stage's checkpoints and deletes old ones.

    Args:
        checkpoints: folder of the stage's checkpoints.
        keep: number of newest complete checkpoints to keep; the best one is always kept (`Checkpoint.rank`).
        count_bytes: returns the size of one checkpoint in bytes.
        write: write(folder, tag, state) makes every rank write its part below folder/tag and verify it. It returns
            file name -> what was written, for each rank.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep: int,
        count_bytes: Callable[[], int],
        write: Callable[[Path, str, dict[str, Any]], list[dict[str, StoredFile]]],
    ):
        self._paths, self._folder, self._keep = CheckpointPaths(checkpoints), CheckpointPaths(checkpoints).ranks, keep
        self._count_bytes, self._write = count_bytes, write

    def save(self, step: int, state: dict[str, Any], reward: float, accuracy: float | None = None) -> Checkpoint:
        """Write the checkpoint of `step`, mark it complete, and delete old ones.

        Args:
            state: state of the loop, besides weights and optimizer (`LoopState.as_dict`); picklable.
            reward: mean reward since the previous checkpoint.
            accuracy: validated accuracy of this policy; None if it was not validated.

        Raises:
            InputError: the disk has too little space. Earlier checkpoints are not changed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        started, needed = time.monotonic(), self._count_bytes()
        self._check_space(needed)
        partial = self._paths.partial(step)
        try:
            parts = self._write(self._folder, partial.name, state)
        except Exception:
            full = shutil.disk_usage(self._folder).free < needed
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise InputError(self._describe_full_disk(needed)) from None
            raise
        files = {name: file for part in parts for name, file in part.items()}
        seconds = round(time.monotonic() - started, 3)
        sizes = {name: file.size for name, file in files.items()}
        checksums = {name: file.crc32 for name, file in files.items()}
        checkpoint = Checkpoint(step, len(parts), reward, seconds, sizes, checksums, accuracy)
        self._mark_complete(partial, checkpoint)
        self._prune()
        return checkpoint

    def _check_space(self, needed: int) -> None:
        """Allocate `needed` bytes on the disk and free them: the reported free space does not include quotas.

        A file system that cannot allocate (Lustre, NFS 3, ZFS) is asked for its free space instead.
        """
        test = self._folder / ".room"
        test.unlink(missing_ok=True)
        try:
            with open(open_private(test, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                _allocate(file.fileno(), needed)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise InputError(f"{self._describe_full_disk(needed)} ({error.strerror})") from None
            if shutil.disk_usage(self._folder).free < needed:
                raise InputError(self._describe_full_disk(needed)) from None
        finally:
            test.unlink(missing_ok=True)

    def _describe_full_disk(self, needed: int) -> str:
        complete = list_checkpoints(self._paths.folder)
        last = f"the checkpoint of step {complete[-1].step} is complete" if complete else "there is no checkpoint yet"
        return (
            f"no room for a checkpoint of {needed / 2**20:,.0f} MiB in {self._folder}, "
            f"{shutil.disk_usage(self._folder).free / 2**20:,.0f} MiB are free; {last}: free some space and run the "
            "same command again"
        )

    def _mark_complete(self, partial: Path, checkpoint: Checkpoint) -> None:
        target = self._paths.at(checkpoint.step)
        write_json(complete_mark(partial), asdict(checkpoint))
        sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        write_atomic(self._paths.latest, target.name)
        sync_folder(self._folder)

    def _prune(self) -> None:
        complete = list_checkpoints(self._paths.folder)
        best = max(complete, key=lambda checkpoint: checkpoint.rank)
        _delete_others(self._paths, [*complete[-self._keep :], best])


def _allocate(file: int, size: int) -> None:
    """Allocate `size` bytes for the open file `file`. Raises OSError.

    This is the system call itself: `os.posix_fallocate` writes the whole size where the file system cannot allocate.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    if libc.fallocate64(file, 0, 0, size):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
