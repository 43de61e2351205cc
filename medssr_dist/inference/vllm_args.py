"""Arguments and environment of a vLLM engine; the same for voting, rollout and evaluation."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from medssr_dist.config.schema import Policy, Runtime
from medssr_dist.runtime.device import build_device_env, on_gpu

_SLEEP_S = 2e-4
_FLASHINFER_SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"


def build_engine_kwargs(model: Path, policy: Policy, runtime: Runtime, tensor_parallel_size: int) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's AsyncEngineArgs for one engine.

    Args:
        model: directory of the model.
        tensor_parallel_size: GPUs of the engine; on CPU, processes.
    """
    kwargs: dict[str, Any] = {
        "model": str(model),
        "dtype": policy.dtype,
        "trust_remote_code": policy.trust_remote_code,
        "max_model_len": policy.max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
        "distributed_executor_backend": "uni" if tensor_parallel_size == 1 else "mp",
        "enable_prefix_caching": True,
        "enforce_eager": runtime.enforce_eager or not on_gpu(),
        "seed": runtime.random_seed,
        # Not the sampling of the model's generation_config.json; its stop tokens are read all the same.
        "generation_config": "vllm",
    }
    if on_gpu():
        return kwargs | {"gpu_memory_utilization": runtime.gpu_memory_utilization}
    # A seeded request that is split over two prefill steps needs Generator.set_offset, which CPU generators do not
    # have: prompts are prefilled in one step.
    return kwargs | {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, policy.max_model_len)}


def build_engine_env(runtime: Runtime, threads: int) -> dict[str, str]:
    """Return the environment of an engine's process. `threads`: CPU threads that it may use; ignored on GPU."""
    env = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= build_device_env()
    if on_gpu():
        # FlashInfer would compile its sampler when an engine starts, which needs nvcc and minutes.
        return env | {_FLASHINFER_SAMPLER: os.environ.get(_FLASHINFER_SAMPLER, "0")}
    return env | {
        "VLLM_CPU_KVCACHE_SPACE": str(runtime.cpu_kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def nap_instead_of_spinning() -> None:
    """Let vLLM's processes sleep while they wait for each other, on a CPU. A plugin of vLLM, named in pyproject.toml.

    By default they poll for a second without a pause, which takes the cores from the model's own threads. The host of a
    GPU has cores to spare, and polling is faster there.
    """
    if on_gpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    setattr(shm_broadcast, "sched_yield", partial(time.sleep, _SLEEP_S))  # noqa: B010 (vLLM does not export the name)
