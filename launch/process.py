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
_CHUNK_BYTES = 64 * 1024
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
        """Copy the output to the log as it comes, and pass on its lines.

        It never stops to read, whatever comes: a process whose output nobody reads blocks in its next write.
        """
        lines = LineSplitter()
        with open(self._log, "ab", buffering=0) as file:
            while chunk := await self._process.stdout.read(_CHUNK_BYTES):
                with suppress(OSError):  # a full disk costs the log's text, not the run
                    file.write(chunk)
                self._pass_on(lines.feed(chunk))
        self._pass_on(lines.flush())

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            self.tail.append(line)
            self._on_line(self.name, line)

    def signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)


class LineSplitter:
    """Splits output that comes in chunks into lines, in bounded memory.

    A carriage return starts a line again, as on a terminal: of the states of a progress bar, the last one before the
    newline counts. Of a long line, the first 2,000 characters are kept. Empty lines are left out.

    Example: feed(b"50%\\r100%\\nload") == ["100%"], then flush() == ["load"]
    """

    def __init__(self) -> None:
        self._state = b""  # of the current line, since its last carriage return that was followed by text
        self._is_returned = False  # a carriage return came last: the next text replaces the state

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that `chunk` completes."""
        *ended, rest = chunk.split(b"\n")
        lines = []
        for part in ended:
            self._add(part)
            lines += self.flush()
        self._add(rest)
        return lines

    def flush(self) -> list[str]:
        """Return the line that has no newline yet, if it has text."""
        text = self._state.decode("utf-8", "replace").strip()[:_LINE_CHARS]
        self._state, self._is_returned = b"", False
        return [text] if text else []

    def _add(self, part: bytes) -> None:
        text = part.rstrip(b"\r")
        if text:
            before, _, last = text.rpartition(b"\r")
            if self._is_returned or before or text.startswith(b"\r"):
                self._state = b""
            self._state += last[: 4 * _LINE_CHARS - len(self._state)]  # UTF-8 has at most 4 bytes a character
            self._is_returned = False
        if part.endswith(b"\r"):
            self._is_returned = True


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
