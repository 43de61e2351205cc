"""Rates of a step on GPUs that nobody has measured: from data sheets, and from efficiencies that are assumed.

The efficiencies are ours, below what is published for well-tuned systems, and each is one constant here. A measured run
replaces them (`medssr bench step --rates RUN_DIR`).
"""

from __future__ import annotations

from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.errors import InputError
from medssr_dist.estimates.model_shape import ModelShape
from medssr_dist.estimates.rollout_model import EngineRates
from medssr_dist.estimates.step_model import StepRates
from medssr_dist.inference.vllm_args import choose_limits

_TRAIN_SHARE = 0.40  # of the peak FLOP/s, forward and backward
_PREFILL_SHARE = 0.50
_BANDWIDTH_SHARE = 0.70  # of the memory's bandwidth, when an engine reads weights and cache
_ITERATION_S = 0.004  # of an engine's scheduler and launches
_NODE_BYTES_S, _NETWORK_BYTES_S = 200e9, 35e9  # gathered by a GPU within a node, and between nodes
_SYNC_FIXED_S, _HOST_BYTES_S, _OFFLOAD_BYTES_S = 1.0, 20e9, 150e9  # PCIe of a GPU; host memory of a node
_UPDATE_FIXED_S = 0.5
_TURN_FIXED_S, _STATE_BYTES = 1.5, 14  # vLLM falls asleep and wakes; of a weight, moved to the host and back


@dataclass(frozen=True)
class GpuKind:
    """A GPU by its data sheet: dense 16-bit FLOP/s, bytes/s of its memory, bytes.

    Example: GpuKind(989e12, 3.35e12, 80e9)
    """

    flops: float
    bandwidth: float
    memory: float


GPU_KINDS = {
    "H100": GpuKind(989e12, 3.35e12, 80e9),
    "H200": GpuKind(989e12, 4.8e12, 141e9),
    "A100": GpuKind(312e12, 2.04e12, 80e9),
}


def predict_step_rates(config: Config, stage: Stage, shape: ModelShape, name: str) -> StepRates:
    """Return the rates of a stage on GPUs of the kind `name`.

    Raises:
        InputError: the kind is unknown.
    """
    if name not in GPU_KINDS:
        raise InputError(f"GPU kind {name!r} is unknown; give one of {', '.join(GPU_KINDS)}")
    gpu, training = GPU_KINDS[name], config.training
    forward = 2 * (shape.body + shape.head)  # FLOP of a token
    recomputed = forward if training.gradient_checkpointing else 0
    compute = (3 * forward + recomputed) / (_TRAIN_SHARE * gpu.flops)
    reference = forward / (_TRAIN_SHARE * gpu.flops) if stage.kl_coef else 0.0
    tokens = stage.micro_batch_tokens or stage.micro_batch_size * config.policy.max_model_len
    gather = 2 * shape.parameters / (_NETWORK_BYTES_S if training.nodes > 1 else _NODE_BYTES_S) / tokens
    passes = 2 if training.hpz and training.nodes > 1 else 3  # forward, backward (within a node with hpz), gradients
    return StepRates(
        source=f"data sheet of {name}, assumed efficiencies",
        engine=_predict_engine(config, shape, gpu),
        experience_s=max(reference, gather if stage.kl_coef else 0.0),
        update_s=max(compute, passes * gather),
        update_fixed_s=_UPDATE_FIXED_S + _offload_seconds(config, shape),
        sync_s=_SYNC_FIXED_S + 2 * shape.parameters / _NETWORK_BYTES_S,
        turn_s=_TURN_FIXED_S + 2 * _STATE_BYTES * shape.parameters / training.ranks / _HOST_BYTES_S,
    )


def _predict_engine(config: Config, shape: ModelShape, gpu: GpuKind) -> EngineRates:
    training, read = config.training, _BANDWIDTH_SHARE * gpu.bandwidth
    size = training.tensor_parallel_size
    weights = (1 if training.rollout_dtype == "fp8" else 2) * shape.parameters / size
    cache = shape.cache_bytes() / size
    room = config.runtime.gpu_memory_utilization * gpu.memory - weights
    fitting = int(room / cache / config.policy.max_model_len * 2)  # samples of half the greatest length
    most = training.max_num_seqs or choose_limits(int(gpu.memory)).max_num_seqs
    forward = 2 * (shape.body + shape.head) / size
    return EngineRates(
        base=_ITERATION_S + weights / read,
        per_sample=forward / (_PREFILL_SHARE * gpu.flops),
        per_cached_token=cache / read,
        per_prompt_token=forward / (_PREFILL_SHARE * gpu.flops),
        most_samples=max(1, min(most, fitting)),
    )


def _offload_seconds(config: Config, shape: ModelShape) -> float:
    """Return the seconds of an optimizer step: in host memory with `offload_optimizer`, else a few milliseconds."""
    training = config.training
    if not training.offload_optimizer:
        return 0.0
    moved = 4 * shape.parameters / training.ranks / _HOST_BYTES_S
    return moved + 28 * shape.parameters / training.nodes / _OFFLOAD_BYTES_S
