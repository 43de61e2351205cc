"""The signals that stop a run."""

import os
import signal

import pytest

from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.session import _stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_the_run_to_stop(number):
    before = signal.getsignal(number)
    with _stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_may_come_more_than_once(number):
    with _stop_on_signal() as should_stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert should_stop()


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_an_error_after_a_stop_becomes_stopped_except_bad_input():
    with pytest.raises(Stopped), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGUSR1)
        raise RuntimeError("an engine died")
    with pytest.raises(InputError), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGUSR1)
        raise InputError("the disk is full")
    with pytest.raises(RuntimeError), _stop_on_signal():
        raise RuntimeError("a bug")
