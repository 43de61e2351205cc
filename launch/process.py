"""Child processes of a node supervisor: the output of each goes to a log file and, line by line, to the launcher."""

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
_LINE_CHARS = 2000  # of a line that are sent to the launcher
_libc = ctypes.CDLL(None)


class Component:
    """A named process in a new session. The kernel sends it SIGTERM when its supervisor dies, however it dies."""

    def __init__(self, name: str, process: Process, log: Path, on_line: Callable[[str, str], None]):
        self.name, self._process, self._log, self._on_line = name, process, log, on_line
        self.tail: deque[str] = deque(maxlen=20)

    @classmethod
    async def start(
        cls, name: str, command: list[str], env: dict[str, str], log: Path, on_line: Callable[[str, str], None]
    ) -> Component:
        """Start `command` with `env` added to the environment. `on_line(name, line)` is called for each line."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            preexec_fn=_prepare_child,
            limit=2**24,
        )
        return cls(name, process, log, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Send SIGKILL."""
        self.signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Read its output until it ends. Return its exit code, or -N if signal N ended it.

        This waits for the process, not for the end of its output, which its children may keep open.
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
                    self._on_line(self.name, text[:_LINE_CHARS])

    def signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)


def adopt_orphans() -> None:
    """Make this process the new parent of descendants whose parent ends, so that `kill_descendants` finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> None:
    """Kill every descendant of this process, in whatever session it is."""
    while left := [pid for pid in _list_descendants(os.getpid()) if not _is_zombie(pid)]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _list_descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [below for child in children for below in _list_descendants(child)]


def _is_zombie(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _prepare_child() -> None:
    """Runs in the child. Ignore USR1: Slurm's warning may reach all processes of a job, and would end most of them."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
