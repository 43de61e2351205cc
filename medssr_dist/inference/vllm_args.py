"""Arguments and environment of a vLLM engine; the same for voting, rollout and evaluation."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from medssr_dist.config.schema import Config, Policy, Runtime
from medssr_dist.runtime.device import build_device_env, on_gpu, read_gpu_bytes

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
        limits = choose_limits(read_gpu_bytes())
        kwargs["max_num_batched_tokens"] = max(limits.max_num_batched_tokens, policy.max_model_len)
        kwargs["max_num_seqs"] = limits.max_num_seqs
        return kwargs | {"gpu_memory_utilization": runtime.gpu_memory_utilization}
    # A seeded request that is split over two prefill steps needs Generator.set_offset, which CPU generators do not
    # have: prompts are prefilled in one step.
    return kwargs | {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, policy.max_model_len)}


def build_rollout_kwargs(model: Path, config: Config) -> dict[str, Any]:
    """Return the keyword arguments of a rollout engine: those of a voting engine, with limits and dtype of its own."""
    training = config.training
    kwargs = build_engine_kwargs(model, config.policy, config.runtime, training.tensor_parallel_size)
    if training.max_num_seqs:
        kwargs["max_num_seqs"] = training.max_num_seqs
    if training.max_num_batched_tokens and on_gpu():
        kwargs["max_num_batched_tokens"] = max(training.max_num_batched_tokens, config.policy.max_model_len)
    if training.rollout_dtype == "fp8":
        kwargs["quantization"] = "fp8"
    if training.placement == "colocated" and on_gpu():  # vLLM has no sleep mode on CPU
        kwargs |= {"enable_sleep_mode": True, "gpu_memory_utilization": training.engine_memory}
    return kwargs | {"logprobs_mode": "processed_logprobs"}  # at the sampling temperature


class EngineLimits(NamedTuple):
    """vLLM's limits of one forward pass. Example: EngineLimits(max_num_seqs=512, max_num_batched_tokens=16384)"""

    max_num_seqs: int
    max_num_batched_tokens: int


def choose_limits(gpu_bytes: int) -> EngineLimits:
    """Return the limits for a GPU with so much memory; behind AsyncLLMEngine, vLLM's own are 128 and 2,048."""
    if gpu_bytes >= 70e9:
        return EngineLimits(512, 16384)
    return EngineLimits(256, 8192) if gpu_bytes >= 35e9 else EngineLimits(128, 4096)


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
        # Where one process computes, it is the scheduler's, as on a GPU: a process less to start and to wait for.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def drop_seed_warning() -> None:
    """Drop vLLM's warning that its seed sets the random state of this process, from which our engines draw nothing."""
    logger = logging.getLogger("vllm.engine.arg_utils")
    logger.addFilter(lambda record: not record.msg.startswith("The global random seed"))


def nap_instead_of_spinning() -> None:
    """Let vLLM's processes sleep while they wait for each other, on a CPU. A plugin of vLLM, named in pyproject.toml.

    By default they poll for a second without a pause, which takes the cores from the model's own threads. The host of a
    GPU has cores to spare, and polling is faster there.
    """
    if on_gpu():
        return
    from vllm.distributed.device_communicators import shm_broadcast

    setattr(shm_broadcast, "sched_yield", partial(time.sleep, _SLEEP_S))  # noqa: B010 (vLLM does not export the name)


def draw_seeded_noise_once() -> None:
    """Let vLLM draw the noise of each seeded sample once, on a CPU. A plugin of vLLM, named in pyproject.toml.

    vLLM's sampler for CPUs first draws noise for all rows, then again for each row with a seed; all of ours have one.
    Its sampler for GPUs, which takes the same values from the same seeds, skips the first draw.
    """
    if on_gpu():
        return
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    setattr(TopKTopPSampler, "forward_cpu", TopKTopPSampler.forward_native)  # noqa: B010 (a method)
