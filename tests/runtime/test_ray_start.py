"""The start of Ray on a machine that is too busy for it, and the loss of its processes during a run."""

import os

import pytest

from medssr_dist.errors import ClusterFailed, InputError
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


@pytest.mark.parametrize("kind", ["ActorDiedError", "WorkerCrashedError", "LocalRayletDiedError", "OutOfMemoryError"])
def test_a_lost_process_is_no_bug(kind):
    error = getattr(ray.exceptions, kind)
    wanted = pytest.raises(ClusterFailed, match="was killed or has crashed .*; the same command resumes the run")
    with wanted, cluster._explain_deaths():
        raise error("killed") if kind == "OutOfMemoryError" else error()


def test_a_process_that_was_lost_within_a_task_is_named():
    lost = ray.exceptions.OutOfMemoryError("the node is low on memory")
    task = ray.exceptions.RayTaskError("run", "traceback", lost).as_instanceof_cause()
    with pytest.raises(ClusterFailed, match=r"crashed \(the node is low on memory\)"), cluster._explain_deaths():
        raise task


def test_an_error_of_a_task_stays_as_it_is():
    task = ray.exceptions.RayTaskError("run", "traceback", ValueError("a bug"))
    with pytest.raises(ValueError, match="traceback"), cluster._explain_deaths():
        raise task.as_instanceof_cause()


@pytest.mark.parametrize(("value", "address"), [(None, ""), ("", ""), ("  ", ""), ("auto", "auto"), ("h:1\n", "h:1")])
def test_an_empty_address_of_ray_is_none(monkeypatch, value, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster.read_ray_address() == address


@pytest.mark.parametrize("words", ["Could not find any running Ray instance.", "Invalid address format: x"])
def test_an_address_without_a_cluster_is_one_line(monkeypatch, words):
    def fail(**options):
        raise (ConnectionError if "find" in words else ValueError)(f"{words}\nMore words.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InputError, match="no Ray cluster can be joined at RAY_ADDRESS='auto' .*; unset RAY_ADDRESS"):
        cluster.connect_to_ray("auto")
