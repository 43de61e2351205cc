"""What asks a run to stop."""

import os
import signal

import pytest

from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.session import _stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_and_ends_nothing(number):
    before = signal.getsignal(number)
    with _stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_warnings_may_come_more_than_once(number):
    with _stop_on_signal() as should_stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert should_stop()


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_what_fails_because_of_the_stop_is_the_stop_and_bad_input_stays_that():
    with pytest.raises(Stopped), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGUSR1)
        raise RuntimeError("an engine died")
    with pytest.raises(InputError), _stop_on_signal():
        os.kill(os.getpid(), signal.SIGUSR1)
        raise InputError("the disk is full")
    with pytest.raises(RuntimeError), _stop_on_signal():
        raise RuntimeError("a bug")
