"""`medssr status` of a job: its attempts with their ends, and the newest problem."""

import fcntl

import pytest
from attempt_files import write_timings
from config_builder import make_config

from medssr_dist.commands.status import find_newest_problem, print_status
from medssr_dist.estimates.step_progress import read_startup_seconds
from medssr_dist.launch.attempts import FIRST_ANSWER, FIRST_STEP, Attempt, AttemptExit, list_attempts
from medssr_dist.run.directory import RunDir, open_run


def end_attempt(run_dir, timings: dict[str, float], code: int, reason: str) -> None:
    attempt = Attempt.begin(run_dir)
    write_timings(attempt, timings)
    attempt.finish(AttemptExit(code, reason))


@pytest.fixture
def job(tmp_path):
    """A run with three attempts: one lost a node, one stopped at its time limit, one has just begun."""
    run_dir = tmp_path / "run"
    timings = {"Ray on every node": 20.0, FIRST_ANSWER: 50.0, FIRST_STEP: 90.0}
    end_attempt(run_dir, timings, 4, "node n2 is lost")
    end_attempt(run_dir, {"Ray on every node": 21.0}, 3, "time limit: state saved")
    newest = Attempt.begin(run_dir).paths.folder
    for name in ("launch", "n1.driver", "n2.ray"):
        (newest / f"{name}.log").write_text("")
    return RunDir(tmp_path / "run")


def test_attempts_are_in_order_with_their_ends(job):
    first, second, third = list_attempts(job.root)
    assert (first.exit.code, first.exit.reason, first.startup_seconds) == (4, "node n2 is lost", 50.0)
    assert (second.exit.code, second.startup_seconds) == (3, None)
    assert (third.exit, third.timings, third.logs) == (None, {}, ["launch.log", "n1.driver.log", "n2.ray.log"])
    assert read_startup_seconds(job) == 50.0


def test_status_before_the_first_step_shows_the_attempts(job, capsys):
    print_status(job.root)
    text = capsys.readouterr().out
    assert "no step has begun" in text
    assert f"attempt 0001: ended with 4: node n2 is lost (Ray on every node at 20 s, {FIRST_ANSWER} at 50 s" in text
    assert "attempt 0002: ended with 3: time limit: state saved (Ray on every node at 21 s, end of" in text
    assert "attempt 0003: no end recorded" in text and "0003: launch.log  n1.driver.log  n2.ray.log" in text


def test_status_of_a_begun_run_shows_the_attempts(job, capsys):
    with open_run(job.root, make_config()), open(job.root / ".lock") as lock:
        print_status(job.root)
        assert lock.fileno() and "attempt 0003: running" in capsys.readouterr().out
    with open(job.root / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a reader is no run
        print_status(job.root)
    assert "attempt 0003: no end recorded" in capsys.readouterr().out


def test_the_newest_problem_comes_from_the_newest_attempt(job):
    assert find_newest_problem(job) is None
    (job.root / "attempts" / "0003" / "n1.driver.log").write_text("RuntimeError: the engine died\n")
    assert find_newest_problem(job).startswith("attempts/0003/n1.driver.log, ")
    list_attempts(job.root)[-1].finish(AttemptExit(1, "the driver ended with exit code 1"))
    assert find_newest_problem(job) == "attempt 0003 ended with 1: the driver ended with exit code 1"
