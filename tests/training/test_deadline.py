"""A stage stops after a step when it was asked to, or when another step and its save would not finish in time."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from medssr_dist.config.schema import Runtime
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.stream import follow_kept_labels
from medssr_dist.training.deadline import VARIABLE, StopSign, find_end_time


@pytest.fixture(autouse=True)
def unset_deadline(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_without_a_deadline_there_is_no_end(monkeypatch):
    assert find_end_time(Runtime()) is None
    monkeypatch.setenv(VARIABLE, "")  # a Slurm job without a limit
    assert find_end_time(Runtime()) is None


def test_earlier_of_config_and_environment_counts(monkeypatch):
    runtime = Runtime(deadline="2026-01-31T18:00:00+00:00")
    assert find_end_time(runtime) == datetime.fromisoformat("2026-01-31T18:00:00+00:00").timestamp()
    monkeypatch.setenv(VARIABLE, "2026-01-31T17:30:00+00:00")
    assert find_end_time(runtime) == find_end_time(Runtime(deadline="2026-01-31T18:30:00+01:00"))
    monkeypatch.setenv(VARIABLE, "1700000000.5")
    assert find_end_time(runtime) == 1700000000.5


def test_a_time_without_a_zone_is_local(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2026-01-31T18:00:00")
    expected = time.mktime(time.strptime("2026-01-31 18:00", "%Y-%m-%d %H:%M"))
    assert find_end_time(Runtime()) == find_end_time(Runtime(deadline="2026-01-31T18:00")) == expected


def test_an_unreadable_time_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "in 2 hours")
    with pytest.raises(InputError, match="MEDSSR_DEADLINE = 'in 2 hours' is not a time"):
        find_end_time(Runtime())


def is_stopped(sign: StopSign, **kwargs) -> bool:
    try:
        sign.check(**kwargs)
    except Stopped:
        return True
    return False


def test_a_requested_stop(tmp_path):
    sign = StopSign(tmp_path / "stop")
    assert not is_stopped(sign)
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped, match="as requested"):
        sign.check()
    assert is_stopped(sign, before_step=False)


@pytest.mark.parametrize(("left", "stopped"), [(1000.0, False), (200.0, False), (100.0, True), (-5.0, True)])
def test_a_step_and_a_save_must_fit_with_a_margin(tmp_path, left, stopped):
    sign = StopSign(tmp_path / "stop", end=time.time() + left)
    for seconds in (10.0, 60.0, 20.0):
        sign.record_step(seconds)
    sign.record_save(40.0)
    assert is_stopped(sign) == stopped  # 1.5 x (60 + 40) = 150 s


def test_only_recent_steps_count_and_old_saves_too(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100, save_s=40.0)
    for seconds in (500.0, 20.0, 20.0, 20.0, 20.0):
        sign.record_step(seconds)
    assert is_stopped(sign)
    sign.record_step(20.0)
    assert not is_stopped(sign)  # 1.5 x (20 + 40) = 90 s


def test_an_unknown_save_is_as_long_as_a_step(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100)
    sign.record_step(40.0)
    assert is_stopped(sign)
    sign.record_save(1.0)
    assert not is_stopped(sign)


def test_waiting_for_labels_reserves_time_for_a_save(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100)
    sign.record_step(300.0)
    sign.record_save(20.0)
    assert is_stopped(sign) and not is_stopped(sign, before_step=False)


def test_the_first_step_is_taken_before_the_end(tmp_path):
    assert not is_stopped(StopSign(tmp_path / "stop", end=time.time() + 60))
    assert is_stopped(StopSign(tmp_path / "stop", end=time.time() - 1))


def test_waiting_for_labels_stops_when_requested(tmp_path):
    sign = StopSign(tmp_path / "stop")
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped):
        next(follow_kept_labels(tmp_path / "labeled.jsonl", 0, sign.check))
