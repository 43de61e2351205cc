import time

import pytest

from medssr_dist.inference.vllm_args import nap_instead_of_spinning
from medssr_dist.runtime.device import on_gpu


@pytest.mark.skipif(on_gpu(), reason="hosts of a GPU have cores to spare")
def test_vllm_waits_asleep_where_it_would_yield(monkeypatch):
    """The name that the plugin replaces is the one that vLLM's waiting loop calls."""
    from vllm.distributed.device_communicators import shm_broadcast

    slept = []
    monkeypatch.setattr(shm_broadcast, "sched_yield", shm_broadcast.sched_yield)
    monkeypatch.setattr(time, "sleep", slept.append)
    nap_instead_of_spinning()
    condition = object.__new__(shm_broadcast.SpinCondition)
    condition.is_reader, condition.last_read, condition.busy_loop_s = True, time.monotonic(), 10
    condition.wait()
    assert slept and 0 < slept[0] < 0.01
