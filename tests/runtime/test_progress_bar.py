"""Progress bars off a terminal: few lines, the last one complete."""

from __future__ import annotations

import io

import pytest

from medssr_dist.runtime import progress_bar as progress
from medssr_dist.runtime.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_bar_writes_few_whole_lines(clock, capsys):
    with ProgressBar(total=200, desc="vote", unit="vote") as bar:
        for _ in range(200):
            clock[0] += 1.0
            bar.set_postfix(kept=3)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 6 <= len(lines) <= 8 and all(line.startswith("vote: ") and "\r" not in line for line in lines)
    assert "200/200" in lines[-1] and "kept=3" in lines[-1]


def test_a_bar_that_leaves_nothing_writes_nothing(clock, capsys):
    with ProgressBar(total=5, desc="empty"):
        pass
    assert list(ProgressBar(range(5), desc="brief", leave=False)) == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_resumed_bar_that_moves_writes_its_end(clock, capsys):
    with ProgressBar(total=10, desc="vote", initial=4) as bar:
        bar.update(6)
    assert "10/10" in capsys.readouterr().err


def test_log_lines_between_keep_their_own_lines(clock, capsys):
    import sys

    with ProgressBar(total=2, desc="vote") as bar:
        bar.update()
        ProgressBar.write("note", file=sys.stderr)
        bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "note"


def test_on_a_terminal_it_is_drawn_in_place(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    with ProgressBar(total=3, file=screen, mininterval=0) as bar:
        bar.update(3)
    assert screen.getvalue().count("\r") >= 2
