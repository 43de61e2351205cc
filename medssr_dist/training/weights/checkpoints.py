"""A stage's checkpoints on disk: written beside the last good one, verified, marked complete, and only then pruned.

DeepSpeed moves its pointer, the file `latest`, before the other ranks have written their shards, and OpenRLHF deletes
old checkpoints before the new one is there. Here a checkpoint is written as `global_stepN.partial`; when every rank
has read its part back, `complete.json` goes into it and a rename makes it `global_stepN`. So what has that name is
whole, whatever died when; `settle` takes away the rest before a restart.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from medssr_dist.data.jsonl import read_json, sync_folder, write_atomic, write_json
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths, complete_mark


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as its complete.json tells.

    Example: Checkpoint(step=20, ranks=2, reward=0.31, seconds=4.2, files={"zero_pp_rank_0_mp_rank_00_...": 1024})
    """

    step: int
    ranks: int
    reward: float  # mean over the steps since the checkpoint before
    seconds: float  # that writing and verifying took
    files: dict[str, int] = field(repr=False)  # name -> bytes

    def is_sound(self, folder: Path) -> bool:
        """Whether all its files are in `folder`, as long as they were."""
        files = {name: folder / name for name in self.files}
        return all(file.is_file() and file.stat().st_size == self.files[name] for name, file in files.items())


def complete_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """Those marked complete, oldest first."""
    paths = CheckpointPaths(checkpoints)
    return [Checkpoint(**read_json(complete_mark(paths.at(step)))) for step in paths.complete_steps()]


def settle(checkpoints: Path) -> Checkpoint | None:
    """Take away what a killed save left, and point DeepSpeed at the newest sound checkpoint; None where there is none.

    One whose files have since been lost or cut short is told of and passed over.
    """
    paths = CheckpointPaths(checkpoints)
    sound = []
    for checkpoint in complete_checkpoints(checkpoints):
        folder = paths.at(checkpoint.step)
        if checkpoint.is_sound(folder):
            sound.append(checkpoint)
        else:
            print(f"warning: checkpoint {folder} has lost files; the one before it is taken")
    if not sound:
        shutil.rmtree(paths.ranks, ignore_errors=True)
        return None
    _keep_only(paths, sound)
    write_atomic(paths.latest, paths.at(sound[-1].step).name)
    return sound[-1]


def _keep_only(paths: CheckpointPaths, checkpoints: list[Checkpoint]) -> None:
    kept = {paths.at(checkpoint.step) for checkpoint in checkpoints}
    for found in paths.ranks.iterdir():
        if found.is_dir() and found not in kept:
            shutil.rmtree(found)


class CheckpointKeeper:
    """Writes a stage's checkpoints and prunes them.

    Args:
        checkpoints: the stage's folder for them.
        keep: newest complete ones that stay, beside the best by reward.
        bytes_needed: how much one takes.
        write: write(folder, tag, state) has every rank write its part below folder/tag and read it back; returns the
            bytes of each rank's files, by name.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep: int,
        bytes_needed: Callable[[], int],
        write: Callable[[Path, str, dict], list[dict[str, int]]],
    ):
        self._paths, self._folder, self._keep = CheckpointPaths(checkpoints), CheckpointPaths(checkpoints).ranks, keep
        self._bytes_needed, self._write = bytes_needed, write

    def save(self, step: int, state: dict, reward: float) -> Checkpoint:
        """Write the checkpoint of `step`, mark it complete, prune.

        Args:
            state: what the trainer needs beside weights and optimizer; picklable.
            reward: mean since the checkpoint before; what "best" means.
        Raises:
            InputError: the disk has no room for it; what was complete before is untouched.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        started, needed = time.monotonic(), self._bytes_needed()
        self._prove_room(needed)
        partial = self._paths.partial(step)
        try:
            parts = self._write(self._folder, partial.name, state)
        except Exception:
            full = shutil.disk_usage(self._folder).free < needed
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise InputError(self._no_room(needed)) from None
            raise
        files = {name: size for part in parts for name, size in part.items()}
        seconds = round(time.monotonic() - started, 3)
        checkpoint = Checkpoint(step, len(parts), reward, seconds, files)
        self._mark_complete(partial, checkpoint)
        self._prune()
        return checkpoint

    def _prove_room(self, needed: int) -> None:
        """Reserve as much on the disk, and give it back: free space as reported knows nothing of quotas."""
        test = self._folder / ".room"
        try:
            with open(test, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, needed)
        except OSError as error:
            raise InputError(f"{self._no_room(needed)} ({error.strerror})") from None
        finally:
            test.unlink(missing_ok=True)

    def _no_room(self, needed: int) -> str:
        complete = complete_checkpoints(self._paths.folder)
        last = f"the checkpoint of step {complete[-1].step} is whole" if complete else "there is no checkpoint yet"
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
        complete = complete_checkpoints(self._paths.folder)
        best = max(complete, key=lambda checkpoint: (checkpoint.reward, checkpoint.step))
        _keep_only(self._paths, [*complete[-self._keep :], best])
