import time

import pytest
import torch

from medssr_dist.errors import InputError
from medssr_dist.inference.vllm_args import draw_seeded_noise_once, nap_instead_of_spinning
from medssr_dist.runtime.device import choose_device, on_gpu, require_device


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


@pytest.mark.skipif(on_gpu(), reason="vLLM's sampler for GPUs draws once")
def test_seeded_samples_are_the_same_when_noise_is_drawn_once(monkeypatch):
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))

    def sample() -> list[int]:
        generators = {row: torch.Generator().manual_seed(row) for row in range(len(logits))}
        tokens, _ = TopKTopPSampler().forward_cpu(logits.clone(), generators, None, None)
        return tokens.tolist()

    before, state = sample(), torch.get_rng_state()
    monkeypatch.setattr(TopKTopPSampler, "forward_cpu", TopKTopPSampler.forward_cpu)  # undone after the test
    draw_seeded_noise_once()
    assert sample() == before
    assert torch.equal(torch.get_rng_state(), state), "noise for rows without a seed was drawn"


def test_a_run_for_gpus_never_uses_the_cpu_instead(monkeypatch):
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    on_gpu.cache_clear()
    require_device("auto")
    require_device("cpu")
    with pytest.raises(InputError, match="runtime.device = gpu, but MEDSSR_DEVICE is cpu here"):
        require_device("gpu")


def test_the_cpu_is_used_on_a_machine_with_gpus(gpu):
    require_device("gpu")
    choose_device("auto")
    assert on_gpu()
    choose_device("cpu")
    assert not on_gpu()
