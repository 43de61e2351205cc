"""An engine that is killed leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = """
import subprocess, sys, time
from medssr_dist.inference.vllm_engine import end_children_with_this_process
guard = end_children_with_this_process()
child = subprocess.Popen(["sleep", "600"])
print(child.pid, guard.pid, flush=True)
time.sleep(600)
"""


def has_ended(pid: int) -> bool:
    """Also true of a zombie, whose parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_children_of_a_killed_engine_end_with_it():
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as engine:
        child, guard = map(int, engine.stdout.readline().split())
        assert not has_ended(child) and not has_ended(guard)
        os.kill(engine.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not (has_ended(child) and has_ended(guard)):
            assert time.monotonic() < deadline, "they are still running"
            time.sleep(0.05)
