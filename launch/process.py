"""A child process of a node supervisor: its output goes to a file of its own and, line by line, to the launcher."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LINE = 2000  # characters of a line that are sent on
_libc = ctypes.CDLL(None)


class Component:
    """A named process in a session of its own, ended by SIGTERM when its supervisor dies, however it dies."""

    def __init__(self, name: str, process: Process, log: Path, on_line: Callable[[str, str], None]):
        self.name, self._process, self._log, self._on_line = name, process, log, on_line
        self.tail: deque[str] = deque(maxlen=20)

    @classmethod
    async def start(
        cls, name: str, command: list[str], env: dict[str, str], log: Path, on_line: Callable[[str, str], None]
    ) -> Component:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            preexec_fn=_before_start,
            limit=2**24,
        )
        return cls(name, process, log, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Pass its output on until it ends; its exit code, -N where signal N ended it.

        Waits for the process, not for the end of its output: its own children may hold that open.
        """
        reading = asyncio.ensure_future(self._read())
        code = await self._process.wait()
        await asyncio.wait([reading], timeout=2.0)
        reading.cancel()
        return code

    async def _read(self) -> None:
        with open(self._log, "ab", buffering=0) as file:
            while line := await self._process.stdout.readline():
                file.write(line)
                text = line.decode("utf-8", "replace").rstrip().rsplit("\r", 1)[-1].rstrip()
                if text:
                    self.tail.append(text)
                    self._on_line(self.name, text[:_LINE])

    def signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that `kill_descendants` finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> None:
    """End every process below this one, whatever session it went into."""
    while left := [pid for pid in _descendants(os.getpid()) if not _is_zombie(pid)]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [below for child in children for below in _descendants(child)]


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _before_start() -> None:
    """In the child. USR1, by which Slurm warns, may reach all processes of a job, and would end most of them."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
