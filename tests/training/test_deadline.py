"""A stage stops at a boundary when asked to, or when another step and its save would not end in time."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from medssr_dist.config.schema import Runtime
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.stream import follow_kept_labels
from medssr_dist.training.deadline import VARIABLE, StopSign, end_time


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_no_end_unless_one_is_given(monkeypatch):
    assert end_time(Runtime()) is None
    monkeypatch.setenv(VARIABLE, "")  # a Slurm job without a limit
    assert end_time(Runtime()) is None


def test_the_earlier_of_config_and_environment_counts(monkeypatch):
    runtime = Runtime(deadline="2026-01-31T18:00:00+00:00")
    assert end_time(runtime) == datetime.fromisoformat("2026-01-31T18:00:00+00:00").timestamp()
    monkeypatch.setenv(VARIABLE, "2026-01-31T17:30:00+00:00")
    assert end_time(runtime) == end_time(Runtime(deadline="2026-01-31T18:30:00+01:00"))
    monkeypatch.setenv(VARIABLE, "1700000000.5")
    assert end_time(runtime) == 1700000000.5


def test_a_time_without_a_zone_is_local(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2026-01-31T18:00:00")
    expected = time.mktime(time.strptime("2026-01-31 18:00", "%Y-%m-%d %H:%M"))
    assert end_time(Runtime()) == end_time(Runtime(deadline="2026-01-31T18:00")) == expected


def test_what_is_no_time_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "in 2 hours")
    with pytest.raises(InputError, match="MEDSSR_DEADLINE = 'in 2 hours' is no time"):
        end_time(Runtime())


def stops(sign: StopSign, **kwargs) -> bool:
    try:
        sign.check(**kwargs)
    except Stopped:
        return True
    return False


def test_asked_to(tmp_path):
    sign = StopSign(tmp_path / "stop")
    assert not stops(sign)
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped, match="asked to"):
        sign.check()
    assert stops(sign, before_step=False)


@pytest.mark.parametrize(("left", "stopped"), [(1000.0, False), (200.0, False), (100.0, True), (-5.0, True)])
def test_a_step_and_a_save_have_to_fit_half_as_long_again(tmp_path, left, stopped):
    sign = StopSign(tmp_path / "stop", end=time.time() + left)
    for seconds in (10.0, 60.0, 20.0):
        sign.took_step(seconds)
    sign.took_save(40.0)
    assert stops(sign) == stopped  # 1.5 x (60 + 40) = 150 s


def test_an_early_long_step_is_forgotten_and_an_earlier_attempts_save_is_known(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100, save_s=40.0)
    for seconds in (500.0, 20.0, 20.0, 20.0, 20.0):
        sign.took_step(seconds)
    assert stops(sign)
    sign.took_step(20.0)
    assert not stops(sign)  # 1.5 x (20 + 40) = 90 s


def test_a_save_never_measured_is_taken_to_last_a_step(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100)
    sign.took_step(40.0)
    assert stops(sign)
    sign.took_save(1.0)
    assert not stops(sign)


def test_waiting_for_labels_leaves_time_for_the_save_alone(tmp_path):
    sign = StopSign(tmp_path / "stop", end=time.time() + 100)
    sign.took_step(300.0)
    sign.took_save(20.0)
    assert stops(sign) and not stops(sign, before_step=False)


def test_before_the_end_the_first_step_is_taken(tmp_path):
    assert not stops(StopSign(tmp_path / "stop", end=time.time() + 60))
    assert stops(StopSign(tmp_path / "stop", end=time.time() - 1))


def test_a_trainer_that_waits_for_labels_hears_the_sign(tmp_path):
    sign = StopSign(tmp_path / "stop")
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped):
        next(follow_kept_labels(tmp_path / "labeled.jsonl", 0, sign.check))
