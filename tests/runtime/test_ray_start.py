"""The start of Ray on a machine that is too busy for it."""

import os

import pytest

from medssr_dist.errors import InputError
from medssr_dist.runtime import cluster

ray = pytest.importorskip("ray")
SLOW = Exception("The current node timed out during startup.")


@pytest.fixture
def faults(monkeypatch):
    """What the next starts of Ray raise, in their order; after them it starts."""
    coming = []

    def start(**options):
        if coming:
            raise coming.pop(0)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(cluster, "_require_token", lambda folder: None)
    monkeypatch.setattr(cluster, "_stay_on_loopback", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return coming


def test_a_node_that_is_late_is_started_again(faults, tmp_path):
    faults += [SLOW, SLOW]
    cluster._start(1, tmp_path)
    assert not faults


def test_a_node_that_never_comes_is_one_line(faults, tmp_path):
    faults += [SLOW] * 9
    with pytest.raises(InputError, match="did not start within 30 s, 3 times in a row.*run the same command again"):
        cluster._start(1, tmp_path)
    assert len(faults) == 6


def test_another_fault_of_ray_is_not_hidden(faults, tmp_path):
    faults += [ValueError("other"), SLOW]
    with pytest.raises(ValueError, match="other"):
        cluster._start(1, tmp_path)
