"""What a run needs in memory and on disk, estimated from the policy's parameter count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.schema import Config, Policy
from medssr_dist.errors import InputError
from medssr_dist.runtime.device import available_memory
from medssr_dist.runtime.models import policy_on_disk

_EMBEDDED_PARAMETERS = 134_515_008  # of SmolLM2-135M, while there is no converted file to count in
# What a process holds beside weights, optimizer state and KV cache. Seen on CPU in the demo with two ranks
# (SmolLM2-135M, 8 sequences of 200 tokens a forward): libraries, buffers and a rank's activations.
_ENGINE_BYTES, _RANK_BYTES, _REFERENCE_BYTES, _DRIVER_BYTES = 2.1e9, 2.5e9, 0.7e9, 1.7e9
_OPTIMIZER = 12  # bytes a parameter that is trained: fp32 master weights and two Adam moments


@dataclass(frozen=True)
class MemoryDemand:
    """Bytes needed at one place, and free there."""

    what: str
    needed: float
    available: float


def estimate_memory(config: Config, parameters: int) -> list[MemoryDemand]:
    """On CPU one demand for the whole run; on GPU one an engine, a training rank, and the host where it offloads.

    On GPU activations, which depend on lengths and kernels, are not counted.
    """
    from medssr_dist.runtime.device import on_gpu

    if not on_gpu():
        return [MemoryDemand("the run", _cpu_bytes(config, parameters), available_memory())]
    import torch

    training, free = config.training, torch.cuda.mem_get_info()[0]
    size = min(config.voting.tensor_parallel_size, training.tensor_parallel_size)
    room = free * config.runtime.gpu_memory_utilization
    optimizer = _OPTIMIZER * _trained(config, parameters) if training.offload_optimizer else 0
    reference = _word(config) * parameters if training.offload_reference and _has_reference(config) else 0
    rank = (_state_bytes(config, parameters) - optimizer - reference) / training.ranks
    demands = [
        MemoryDemand("an engine's GPU", _word(config) * parameters / size, room),
        MemoryDemand("a training rank's GPU", rank, free),
    ]
    if optimizer:
        demands.append(MemoryDemand("the optimizer on the host", optimizer / training.nodes, available_memory()))
    if reference:
        demands.append(MemoryDemand("the reference on the host", reference / training.nodes, available_memory()))
    return demands


def refuse_too_little_memory(config: Config) -> None:
    """Raise InputError where weights, optimizer state and KV cache alone exceed this CPU machine's free memory."""
    from medssr_dist.runtime.device import on_gpu

    if on_gpu():
        return
    parameters, available = count_parameters(config.policy), available_memory()
    kv_cache = config.runtime.cpu_kv_cache_gib * 2**30
    needed = _state_bytes(config, parameters) + config.training.engines * (_word(config) * parameters + kv_cache)
    if needed > available:
        raise InputError(
            f"policy.model = {config.policy.model!r} with {parameters / 1e6:,.0f}M parameters needs at least "
            f"{needed / 1e9:.1f} GB to train here, {available / 1e9:.1f} GB are free; take a smaller model, lower "
            "runtime.cpu_kv_cache_gib, or free some memory"
        )


def _cpu_bytes(config: Config, parameters: int) -> float:
    training = config.training
    engine = _word(config) * parameters + config.runtime.cpu_kv_cache_gib * 2**30 + _ENGINE_BYTES
    rank = _RANK_BYTES + _REFERENCE_BYTES * _has_reference(config)
    ranks = training.ranks * rank + _state_bytes(config, parameters)
    vote, train = config.voting.engines * engine, training.engines * engine + ranks
    return _DRIVER_BYTES + (vote + train if config.runtime.mode == "stream" else max(vote, train))


def _state_bytes(config: Config, parameters: int) -> float:
    """Training state over all ranks: weights, and of what is trained gradients and optimizer; with the reference."""
    word = _word(config)
    models = word * parameters * (1 + _has_reference(config))
    return models + (word + _OPTIMIZER) * _trained(config, parameters)


def _word(config: Config) -> int:
    """Bytes of a weight or a gradient."""
    return 4 if config.policy.dtype == "float32" else 2


def _trained(config: Config, parameters: int) -> int:
    """Parameters that are trained; adapters are too few to count."""
    return 0 if config.training.lora_rank else parameters


def _has_reference(config: Config) -> bool:
    return any(stage.enabled and stage.kl_coef > 0 for stage in (config.training.stage1, config.training.stage2))


def estimate_checkpoint_bytes(config: Config, parameters: int) -> float:
    """The most that both stages hold on disk: the kept checkpoints, the one being written, the exported model."""
    stages = [stage for stage in (config.training.stage1, config.training.stage2) if stage.enabled]
    checkpoint = _word(config) * parameters + _OPTIMIZER * _trained(config, parameters)
    return sum(checkpoint * (stage.keep_checkpoints + 2) + _word(config) * parameters for stage in stages)


def count_parameters(policy: Policy) -> int:
    """Parameters of the policy, from its safetensors headers or the size of its 16-bit .bin files.

    Raises:
        InputError: the model is not on this machine.
    """
    folder = policy_on_disk(policy)
    if folder is None:
        return _EMBEDDED_PARAMETERS
    counted = sum(_parameters_in(file) for file in folder.glob("*.safetensors"))
    return counted or sum(file.stat().st_size for file in folder.glob("*.bin")) // 2


def _parameters_in(file: Path) -> int:
    """A safetensors file begins with the length of its JSON header, 8 bytes little-endian, and the header."""
    with open(file, "rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
