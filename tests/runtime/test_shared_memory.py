"""Shared memory of a run carries its name, and is gone soon after the run, also after `kill -9`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from medssr_dist.runtime.shared_memory import RUN_VARIABLE, remove_shared_memory
from medssr_dist.runtime.temp_dir import open_ray_temp_dir

SHM = Path("/dev/shm")
RUN = f"""
import os, sys, time
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from medssr_dist.runtime.shared_memory import use_run_names
from medssr_dist.runtime.temp_dir import open_ray_temp_dir

def make():
    memory, lock = SharedMemory(create=True, size=1000), get_context("spawn").Lock()
    other = SharedMemory(memory.name)
    memory.buf[0] = 7
    assert other.buf[0] == 7
    return memory, other, lock

if __name__ == "__main__":
    with open_ray_temp_dir(Path(sys.argv[1]), Path(sys.argv[2])) as folder:
        os.environ["{RUN_VARIABLE}"] = folder.name
        use_run_names()
        parts = make()
        print(folder, flush=True)
        sys.stdin.read()
"""


def list_shared(run: str) -> list[str]:
    return sorted(file.name for file in SHM.iterdir() if f"medssr_{run}_" in file.name)


def wait_until_gone(run: str, folder: Path) -> None:
    deadline = time.monotonic() + 5
    while (left := [*list_shared(run), *map(str, [folder] * folder.exists())]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_run_leaves_no_shared_memory(tmp_path, is_killed):
    command = [sys.executable, "-c", RUN, tmp_path / "logs", tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        folder = Path(driver.stdout.readline().strip())
        run = folder.name
        names = list_shared(run)
        assert len(names) == 2 and names[0].startswith(f"medssr_{run}_") and names[1].startswith(f"sem.medssr_{run}_")
        if is_killed:
            subprocess.run(["pkill", "-KILL", "-P", str(driver.pid), "-f", "resource_tracker"], check=True)
            driver.kill()
        else:
            driver.stdin.close()
    wait_until_gone(run, folder)


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    with open_ray_temp_dir(tmp_path / "logs", tmp_path) as folder:
        home = folder.parent
    stale = home / "killed"
    stale.mkdir()
    (SHM / "medssr_killed_12345678").touch()
    (SHM / "medssr_other_12345678").touch()
    try:
        with open_ray_temp_dir(tmp_path / "logs", tmp_path):
            assert list_shared("killed") == [] and not stale.exists() and list_shared("other")
    finally:
        remove_shared_memory("other")
    assert list_shared("other") == []
