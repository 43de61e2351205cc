"""Arguments and environment of a vLLM engine; the same for voting, rollout and evaluation."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from medssr_dist.config.schema import Policy, Runtime
from medssr_dist.runtime.device import device_env, on_gpu

_NAP_S = 2e-4


def build_engine_kwargs(model: Path, policy: Policy, runtime: Runtime, tensor_parallel_size: int) -> dict:
    """vLLM AsyncEngineArgs for one engine; the same for voting, rollout and evaluation."""
    kwargs = {
        "model": str(model),
        "dtype": policy.dtype,
        "trust_remote_code": policy.trust_remote_code,
        "max_model_len": policy.max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
        "distributed_executor_backend": "uni" if tensor_parallel_size == 1 else "mp",
        "enable_prefix_caching": True,
        "enforce_eager": runtime.enforce_eager or not on_gpu(),
        "seed": runtime.random_seed,
    }
    if on_gpu():
        return kwargs | {"gpu_memory_utilization": runtime.gpu_memory_utilization}
    # A seeded request split over two prefill steps needs Generator.set_offset, which CPU generators
    # lack: prompts are prefilled whole.
    return kwargs | {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, policy.max_model_len)}


def build_engine_env(runtime: Runtime, threads: int) -> dict[str, str]:
    """Environment of an engine's process. `threads`: CPU threads it may use; not used on GPU."""
    env = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= device_env()
    if on_gpu():
        return env
    return env | {
        "VLLM_CPU_KVCACHE_SPACE": str(runtime.cpu_kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def nap_instead_of_spinning() -> None:
    """vLLM plugin: on a CPU its processes wait for each other asleep.

    By default they look again and again for a second, which takes the cores from the model's own threads. A GPU's host
    has cores to spare, and less time.
    """
    if on_gpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = partial(time.sleep, _NAP_S)
