"""`medssr status --json` and `--watch`: the same facts for programs, and as a live table."""

import fcntl
import json
import threading
import time

import pytest
from finished_run import write_run
from rich.console import Console

from medssr_dist import cli
from medssr_dist.commands.status import RunStatus, read_status, render_status
from medssr_dist.commands.status_watch import render_live


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def test_json_has_what_the_text_shows(run, capsys):
    assert cli.main(["status", str(run.root), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    status = RunStatus.model_validate(row)
    assert status == read_status(run.root) and not status.running
    steps = {step["step"]: step for step in row["steps"]}
    assert steps["vote"]["state"] == "finished" and steps["vote"]["done"] == 8 and steps["stage2"]["state"] == "off"
    assert row["metrics"]["stage1"]["step"] == 3 and row["problem"] is None
    assert "vote        finished at" in render_status(status) and "newest problem: none" in render_status(status)


def test_the_table_has_a_row_for_each_step(run):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_live(read_status(run.root)))
    text = console.export_text()
    for words in ("synthesize", "finished", "8 questions", "stage1: step 3", "not running", "no problem in the logs"):
        assert words in text


def test_no_control_character_reaches_the_terminal(run):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_live(read_status(run.root).model_copy(update={"problem": "\x1b[2J[red]gone"})))
    text = console.export_text()
    assert "\x1b" not in text and "\\x1b[2J[red]gone" in text


def test_watch_ends_with_the_run(run, capsys):
    lock = open(run.lock_file)  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = []
    watch = threading.Thread(
        target=lambda: done.append(cli.main(["status", str(run.root), "--watch", "--every", "0.1"]))
    )
    watch.start()
    time.sleep(0.5)
    assert watch.is_alive()
    lock.close()
    watch.join(30)
    out = capsys.readouterr().out
    assert done == [0] and out.count(": running; ") >= 2 and out.count(": not running; ") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--every", "0"], "above 0"), (["--every", "nan"], "above 0"), ([], "is no run directory")],
)
def test_wrong_uses_are_said(run, tmp_path, capsys, arguments, expected):
    folder = run.root if arguments else tmp_path
    assert cli.main(["status", str(folder), "--watch", *arguments]) == 2
    assert expected in capsys.readouterr().err
