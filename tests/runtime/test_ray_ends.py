"""What Ray has started on one machine ends with the driver, also after `kill -9`."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.slow
DRIVER = """
import sys, time
from pathlib import Path
from medssr_dist.runtime import cluster
cluster._start(1, Path(sys.argv[1]))
print("up", flush=True)
time.sleep(600)
"""
LEFT_S = 6.0  # 5 s, and the time to look


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody has reaped, as in a container, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_agents_end_soon_after_a_killed_driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r")
    with subprocess.Popen([sys.executable, "-c", DRIVER, folder], stdout=subprocess.PIPE, text=True) as driver:
        while driver.stdout.readline() not in ("up\n", ""):
            pass
        started = psutil.Process(driver.pid).children(recursive=True)
        names = {" ".join(each.cmdline()) for each in started}
        assert any("raylet" in name for name in names) and any("Agent" in name for name in names), names
        driver.kill()
    _, left = psutil.wait_procs(started, timeout=LEFT_S)
    assert not [each for each in left if is_alive(each)]
