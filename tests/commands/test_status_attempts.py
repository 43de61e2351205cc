"""`medssr status` of a job: its attempts, how each ended, and the newest problem, from the run directory alone."""

import fcntl

import pytest
from config_builder import make_config

from medssr_dist.commands.status import find_newest_problem, print_status
from medssr_dist.data.jsonl import write_json
from medssr_dist.estimates.step_progress import read_startup_seconds
from medssr_dist.launch.attempts import FIRST_ANSWER, FIRST_STEP, list_attempts
from medssr_dist.run.directory import RunDir, open_run


@pytest.fixture
def job(tmp_path):
    """Three attempts: one lost a node, one was stopped at its limit, one has only begun."""
    folder = tmp_path / "run" / "attempts"
    write_json(folder / "0001" / "exit.json", {"code": 4, "reason": "node n2 is lost"})
    write_json(folder / "0001" / "timings.json", {"Ray on every node": 20.0, FIRST_ANSWER: 50.0, FIRST_STEP: 90.0})
    write_json(folder / "0002" / "exit.json", {"code": 3, "reason": "time limit: state saved"})
    write_json(folder / "0002" / "timings.json", {"Ray on every node": 21.0})
    (folder / "0003").mkdir()
    for name in ("launch", "n1.driver", "n2.ray"):
        (folder / "0003" / f"{name}.log").write_text("")
    return RunDir(tmp_path / "run")


def test_attempts_in_order_with_how_each_ended(job):
    first, second, third = list_attempts(job.root)
    assert (first.code, first.reason, first.startup_seconds) == (4, "node n2 is lost", 50.0)
    assert (second.code, second.startup_seconds) == (3, None)
    assert (third.code, third.timings, third.logs) == (None, {}, ["launch.log", "n1.driver.log", "n2.ray.log"])
    assert read_startup_seconds(job) == 50.0


def test_status_before_any_step_was_begun_shows_the_attempts(job, capsys):
    print_status(job.root)
    text = capsys.readouterr().out
    assert "no step has begun" in text
    assert f"attempt 0001: ended with 4: node n2 is lost (Ray on every node at 20 s, {FIRST_ANSWER} at 50 s" in text
    assert "attempt 0002: ended with 3: time limit: state saved (Ray on every node at 21 s)" in text
    assert "attempt 0003: no end recorded" in text and "0003: launch.log  n1.driver.log  n2.ray.log" in text


def test_status_of_a_begun_run_shows_them_too(job, capsys):
    with open_run(job.root, make_config()), open(job.root / ".lock") as lock:
        print_status(job.root)
        assert lock.fileno() and "attempt 0003: running" in capsys.readouterr().out
    with open(job.root / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a reader is no run
        print_status(job.root)
    assert "attempt 0003: no end recorded" in capsys.readouterr().out


def test_the_newest_problem_is_why_the_newest_attempt_ended_or_in_its_logs(job):
    assert find_newest_problem(job) is None
    (job.root / "attempts" / "0003" / "n1.driver.log").write_text("RuntimeError: the engine died\n")
    assert find_newest_problem(job).startswith("attempts/0003/n1.driver.log, ")
    write_json(job.root / "attempts" / "0003" / "exit.json", {"code": 1, "reason": "the driver ended with exit code 1"})
    assert find_newest_problem(job) == "attempt 0003 ended with 1: the driver ended with exit code 1"
