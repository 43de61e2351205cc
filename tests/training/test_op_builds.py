"""A build of DeepSpeed's ops that was killed does not block later processes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from torch.utils import cpp_extension

from medssr_dist.training.backend import op_builds

HOLD = """
import sys, time
from medssr_dist.training.backend.op_builds import BuildLock
lock = BuildLock(sys.argv[1])
assert lock.try_acquire()
print("held", flush=True)
time.sleep(60)
"""
SOURCE = "#include <torch/extension.h>\nint answer() { return 42; }\n"


def test_the_lock_of_a_killed_build_is_released(tmp_path):
    path = str(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout.readline() == "held\n"
        lock, acquired = op_builds.BuildLock(path), threading.Event()
        threading.Thread(target=lambda: (lock.try_acquire(), acquired.set()), daemon=True).start()
        assert not acquired.wait(0.5)  # the other process builds
        builder.kill()
    assert acquired.wait(60)
    lock.release()


@pytest.mark.slow
def test_a_leftover_file_of_torchs_guard_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    op_builds.guard_op_builds()
    (tmp_path / "tiny_op").mkdir()
    (tmp_path / "tiny_op" / "lock").touch()
    tiny = cpp_extension.load_inline(
        "tiny_op", SOURCE, functions=["answer"], build_directory=str(tmp_path / "tiny_op"), extra_cflags=["-O0"]
    )
    assert tiny.answer() == 42


def test_each_environment_builds_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    op_builds.guard_op_builds()
    first = op_builds.os.environ["TORCH_EXTENSIONS_DIR"]
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    op_builds.guard_op_builds()
    assert first.startswith(str(tmp_path)) and op_builds.os.environ["TORCH_EXTENSIONS_DIR"] != first
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
