"""The processes of a node supervisor: their output, their end, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys

import pytest

from medssr_dist.launch.process import Component, LineSplitter


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"10%\r90%\nfull\n"], ["90%", "full"]),
        ([b"10%\r90", b"%\r", b"\nfull"], ["90%", "full"]),
        ([b"\r10%", b"\r20%", b"\r30%"], ["30%"]),
        ([b"dos\r\nline\r", b"\n"], ["dos", "line"]),
        ([b"a\r", b"b\n"], ["b"]),
        ([b"\n\n \n"], []),
        ([b"x" * 5000, b"y\nnext\n"], ["x" * 2000, "next"]),
        (["é".encode()[:1], "é".encode()[1:] + b"\n"], ["é"]),
    ],
)
def test_chunks_are_split_into_lines(chunks, lines):
    splitter = LineSplitter()
    assert [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush() == lines


_BARS = """
import sys
bar = "\\rvote:  31%|###       | {:9d}/1000000 [1:02:03<4:05:06, 12.3question/s]"
for _ in range(160):
    sys.stderr.write("".join(bar.format(number) for number in range(10_000)))
sys.stderr.write("\\ndone\\n")
"""


async def test_progress_bars_without_a_newline_never_block(tmp_path):
    """Hours of progress bars: 100 MiB without a newline reach the log, and what follows reaches the launcher."""
    lines: list[str] = []
    command = [sys.executable, "-c", _BARS]
    component = await Component.start("driver", command, {}, tmp_path / "log", lambda _, line: lines.append(line))
    assert await asyncio.wait_for(component.wait(), 120) == 0
    assert (tmp_path / "log").stat().st_size > 100 * 2**20
    assert [line[:10] for line in lines] == ["vote:  31%", "done"]
    assert "9999/1000000" in lines[0]


async def test_output_goes_to_the_log_file_and_to_the_launcher(tmp_path):
    lines: list[tuple[str, str]] = []
    command = [sys.executable, "-c", "print('10%\\r90%\\nfull', flush=True); raise SystemExit(3)"]
    component = await Component.start("driver", command, {}, tmp_path / "log", lambda *line: lines.append(line))
    assert await component.wait() == 3
    assert lines == [("driver", "90%"), ("driver", "full")]
    assert (tmp_path / "log").read_bytes() == b"10%\r90%\nfull\n"


_CHILD = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(sys.argv[1]).touch()))
print("up", flush=True)
signal.pause()
"""
_SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from medssr_dist.launch.process import Component

async def main():
    def on_line(name, text):
        print(child.pid, flush=True)

    child = await Component.start("child", [sys.executable, *sys.argv[1:]], {}, Path(sys.argv[2] + ".log"), on_line)
    await child.wait()

asyncio.run(main())
"""


def test_a_component_ends_with_its_supervisor(tmp_path):
    """After a kill -9 of the supervisor the kernel sends SIGTERM to the child, which still does its last work."""
    program = tmp_path / "child.py"
    program.write_text(_CHILD)
    command = [sys.executable, "-c", _SUPERVISOR, str(program), str(tmp_path / "ended")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        child = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
    assert select.select([child], [], [], 60)[0]
    os.close(child)
    assert (tmp_path / "ended").exists()


async def test_slurms_warning_does_not_end_a_component(tmp_path):
    component = await Component.start("ray", ["sh", "-c", "kill -USR1 $$; exit 3"], {}, tmp_path / "log", print)
    assert await component.wait() == 3


_ORPHANS = """
import os, subprocess, sys
from medssr_dist.launch.process import adopt_orphans, kill_descendants

adopt_orphans()
parent = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid, flush=True)"
orphan = int(subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True).stdout.split()[0])
os.kill(orphan, 0)
kill_descendants()
os.waitpid(orphan, 0)
"""


def test_processes_that_a_component_leaves_are_killed():
    subprocess.run([sys.executable, "-c", _ORPHANS], check=True, timeout=120)
