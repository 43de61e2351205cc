"""Starts the offline teacher as a process of its own and ends it again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_END_S = 5


@contextmanager
def start_teacher(log_path: Path, random_seed: int = 42, options: Sequence[str] = ()) -> Iterator[str]:
    """Serve on a free loopback port for the length of the block; yields the base URL.

    The process ends with the block, and by itself when this process is gone, even by SIGKILL.

    Args:
        log_path: where its stderr goes.
        options: further command-line options, such as ("--rate-429", "0.3").

    Raises:
        RuntimeError: it ended before it served; the message holds the end of its log.
    """
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "medssr_dist.synthesis.teacher", "--port", "0", "--random-seed", str(random_seed)]
    command += ["--exit-with-parent", str(os.getpid()), *options]
    with open(log_path, "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        base_url = process.stdout.readline().strip()  # printed once it takes requests; '' when it has ended
        if not base_url:
            raise RuntimeError(f"the offline teacher did not start: {log_path.read_text(encoding='utf-8')[-500:]}")
        yield base_url
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
