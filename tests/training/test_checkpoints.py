"""After any crash a run finds its newest complete checkpoint; old ones are deleted after the new one is complete."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medssr_dist.data.checksums import compute_file_checksum
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths
from medssr_dist.training.weights import checkpoints
from medssr_dist.training.weights.checkpoints import CheckpointKeeper, StoredFile, list_checkpoints, recover_checkpoint


class Disk:
    """A stage's checkpoints, written by two ranks of 100 bytes each."""

    def __init__(self, checkpoints: Path, keep: int = 1, needed: int = 200):
        self.checkpoints, self.folder = checkpoints, CheckpointPaths(checkpoints).ranks
        self.keeper = CheckpointKeeper(checkpoints, keep, lambda: needed, self.write)
        self.fails_at = ""

    def write(self, folder: Path, tag: str, state: dict) -> list[dict[str, StoredFile]]:
        (folder / tag).mkdir()
        (folder / tag / "rank0").write_text("x" * 100)
        if self.fails_at == "between ranks":
            raise RuntimeError("rank 1 died")
        (folder / tag / "rank1").write_text("x" * 100)
        return [{name: StoredFile(100, compute_file_checksum(folder / tag / name))} for name in ("rank0", "rank1")]

    def save(self, step: int, reward: float = 0.0):
        return self.keeper.save(step, {}, reward)

    def leave_partial(self, step: int) -> None:
        """Leave what a kill -9 during a save leaves: a partial folder."""
        self.write(self.folder, CheckpointPaths(self.checkpoints).partial(step).name, {})

    @property
    def found(self) -> list[str]:
        return sorted(folder.name for folder in self.folder.iterdir() if folder.is_dir())

    @property
    def latest(self) -> str:
        return (self.folder / "latest").read_text()


@pytest.fixture
def disk(tmp_path) -> Disk:
    return Disk(tmp_path / "checkpoints")


def test_without_a_checkpoint_nothing_is_recovered(tmp_path):
    assert recover_checkpoint(tmp_path / "checkpoints") is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_saved_checkpoint_is_listed_and_recovered(disk):
    saved = disk.save(7, reward=0.25)
    assert (saved.step, saved.ranks, saved.reward, saved.files) == (7, 2, 0.25, {"rank0": 100, "rank1": 100})
    assert list_checkpoints(disk.checkpoints) == [saved] == [recover_checkpoint(disk.checkpoints)]
    assert (disk.found, disk.latest) == (["global_step7"], "global_step7")


@pytest.mark.parametrize(
    ("rewards", "keep", "kept"),
    [
        ([0.1, 0.2, 0.3], 1, [3]),
        ([0.9, 0.2, 0.3], 1, [1, 3]),
        ([0.1, 0.9, 0.3, 0.2], 1, [2, 4]),
        ([0.9, 0.2, 0.3, 0.1], 2, [1, 3, 4]),
        ([0.5, 0.5, 0.5], 1, [3]),
    ],
)
def test_best_and_newest_are_kept(tmp_path, rewards, keep, kept):
    disk = Disk(tmp_path, keep)
    for step, reward in enumerate(rewards, start=1):
        disk.save(step, reward)
    assert disk.found == [f"global_step{step}" for step in kept]
    assert recover_checkpoint(tmp_path).step == len(rewards)


def test_the_best_is_the_one_with_the_highest_accuracy(tmp_path):
    """A checkpoint that was not validated is no better than one that was, whatever its reward."""
    disk = Disk(tmp_path)
    for step, (reward, accuracy) in enumerate([(0.1, 0.5), (0.9, 0.4), (0.8, None), (0.2, None)], start=1):
        disk.keeper.save(step, {}, reward, accuracy)
    assert disk.found == ["global_step1", "global_step4"]
    assert [saved.accuracy for saved in list_checkpoints(disk.checkpoints)] == [0.5, None]


def test_partial_first_checkpoint_is_deleted(disk):
    disk.folder.mkdir(parents=True)
    disk.leave_partial(1)
    assert recover_checkpoint(disk.checkpoints) is None
    assert not disk.folder.exists()


@pytest.mark.parametrize("latest", ["global_step9", "global_step10", ""])
def test_partial_later_checkpoint_is_skipped(disk, latest):
    disk.save(9)
    disk.leave_partial(10)
    (disk.folder / "latest").write_text(latest)
    assert recover_checkpoint(disk.checkpoints).step == 9
    assert (disk.found, disk.latest) == (["global_step9"], "global_step9")


@pytest.mark.parametrize("loss", ["cut", "gone"])
def test_checkpoint_with_lost_files_is_skipped(disk, caplog, loss):
    disk.save(1, reward=0.9)
    disk.save(2)
    file = disk.folder / "global_step2" / "rank1"
    file.write_text("x") if loss == "cut" else file.unlink()
    assert recover_checkpoint(disk.checkpoints).step == 1
    assert disk.found == ["global_step1"] and "global_step2 has lost files" in caplog.text


def test_failed_save_keeps_the_previous_checkpoint(disk):
    disk.save(1)
    disk.fails_at = "between ranks"
    with pytest.raises(RuntimeError, match="rank 1 died"):
        disk.save(2)
    assert disk.found == ["global_step1"] and recover_checkpoint(disk.checkpoints).step == 1


def test_saving_a_step_again_replaces_it(disk):
    disk.save(3, reward=0.1)
    assert disk.save(3, reward=0.2).reward == 0.2
    assert list_checkpoints(disk.checkpoints)[0].reward == 0.2


def test_a_folder_that_cannot_be_deleted_yet_is_no_error(disk, caplog, monkeypatch):
    """NFS keeps a folder as long as a process has one of its files open."""
    disk.save(10)
    rmdir = os.rmdir

    def refuse(path, *args, **kwargs):
        if "global_step10" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        rmdir(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        disk.save(20)
        assert "cannot be deleted yet (Directory not empty)" in caplog.text
        assert recover_checkpoint(disk.checkpoints).step == 20
    disk.save(30)
    assert disk.found == ["global_step30"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from test_checkpoints import Disk

disk = Disk(Path(sys.argv[1]))
disk.save(10)
unlink = os.unlink

def kill_after(path, *args, **kwargs):
    unlink(path, *args, **kwargs)
    if str(path) == "rank0":
        os.kill(os.getpid(), signal.SIGKILL)

os.unlink = kill_after
disk.save(20)
"""


def test_a_kill_while_an_old_checkpoint_is_deleted(disk):
    command = [sys.executable, "-c", _KILLED, str(disk.checkpoints)]
    killed = subprocess.run(command, cwd=Path(__file__).parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert recover_checkpoint(disk.checkpoints).step == 20
    assert disk.found == ["global_step20"]


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (100, False)])
def test_room_where_the_file_system_cannot_allocate(disk, monkeypatch, free, fits):
    """Lustre, NFS 3 and ZFS: their free space is read, and nothing is written to find out."""

    def refuse(file, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(checkpoints, "_allocate", refuse)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        disk.save(5)
    else:
        with pytest.raises(InputError, match="no room for a checkpoint"):
            disk.save(5)


def test_too_little_space_is_refused_before_writing(tmp_path):
    disk = Disk(tmp_path, needed=2**60)
    with pytest.raises(InputError, match=r"no room for a checkpoint of [\d,]+ MiB.*there is no checkpoint yet"):
        disk.save(1)
    assert disk.found == [] and [file.name for file in disk.folder.iterdir()] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_checkpoint_and_is_reported(small_disk):
    disk = Disk(small_disk, needed=400_000)
    disk.save(1)
    (small_disk / "other").write_bytes(bytes(800_000))
    with pytest.raises(InputError, match=r"the checkpoint of step 1 is complete: free some space.*No space left"):
        disk.save(2)
    assert recover_checkpoint(small_disk).step == 1
    (small_disk / "other").unlink()
    assert disk.save(2).step == 2


def test_disk_that_fills_during_a_save_keeps_the_last(small_disk):
    disk = Disk(small_disk, needed=400_000)
    disk.save(1)
    write = disk.write

    def write_until_full(folder, tag, state):
        write(folder, tag, state)
        (small_disk / "other").write_bytes(bytes(900_000))
        raise RuntimeError("unexpected pos 64 vs 0")  # torch reports a full disk so

    disk.keeper = CheckpointKeeper(small_disk, 1, lambda: 400_000, write_until_full)
    with pytest.raises(InputError, match="the checkpoint of step 1 is complete"):
        disk.save(2)
    assert recover_checkpoint(small_disk).step == 1 and disk.found == ["global_step1"]
