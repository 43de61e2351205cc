"""Memory and disk space that a run needs, estimated from the number of parameters of the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medssr_dist.config.schema import Config, Policy
from medssr_dist.errors import InputError
from medssr_dist.estimates.model_shape import find_shape
from medssr_dist.run.paths import STAGES
from medssr_dist.runtime.device import read_available_memory, read_free_gpu_bytes
from medssr_dist.runtime.model_files import read_stored_weights
from medssr_dist.runtime.models import find_policy_on_disk
from medssr_dist.training.save_interval import choose_save_steps

_EMBEDDED_PARAMETERS = 134_515_008  # SmolLM2-135M; used until its weights have been converted and can be counted
# Bytes of a process in addition to weights, optimizer state and KV cache: libraries, buffers, and the activations of a
# rank. Measured on CPU in the demo with two ranks (SmolLM2-135M, 8 sequences of 200 tokens in one forward pass).
_ENGINE_BYTES, _RANK_BYTES, _REFERENCE_BYTES, _DRIVER_BYTES = 2.1e9, 2.5e9, 0.7e9, 1.7e9
# On a GPU: CUDA, NCCL and the kernels' buffers; and how many weights DeepSpeed gathers at most (its default).
_GPU_RANK_BYTES, _GATHERED_PARAMETERS = 2e9, 1_000_000_000
_SLEEPING_ENGINE_BYTES = 2e9  # a colocated engine while the ranks train: CUDA, captured graphs (assumed)
_OPTIMIZER_BYTES = 12  # bytes per trained parameter: the fp32 master weight and the two moments of Adam


@dataclass(frozen=True)
class MemoryDemand:
    """Bytes that one part of a run needs, and bytes that are free where it runs.

    Example:
        MemoryDemand("a training rank's GPU", needed=2.1e10, available=8.4e10)

    Attributes:
        what: the part, in words.
        needed: estimated bytes.
        available: free bytes of the GPU or of the machine.
        on_host: whether it is the memory of a node with GPUs.
    """

    what: str
    needed: float
    available: float
    on_host: bool = False


def estimate_memory(config: Config, parameters: int) -> list[MemoryDemand]:
    """Return the memory demands of the run that `config` describes.

    On CPU there is one demand, for the whole run. On GPU there is one for the GPU of an engine, one for the GPU of a
    training rank, and one for each thing that is offloaded to the memory of the host. Colocated engines and ranks share
    their GPUs: there is one demand for each turn. A GPU that is not here is assumed to have ASSUMED_GPU_BYTES.
    Activations are those of the largest micro-batch, where the model's shape is known.

    Args:
        parameters: number of parameters of the policy, see `count_parameters`.
    """
    from medssr_dist.runtime.device import on_gpu

    if not on_gpu():
        return [MemoryDemand("the run", _cpu_bytes(config, parameters), read_available_memory())]
    training, free = config.training, read_free_gpu_bytes()
    size = min(config.voting.tensor_parallel_size, training.tensor_parallel_size)
    room = free * config.runtime.gpu_memory_utilization
    optimizer = _OPTIMIZER_BYTES * _trained_parameters(config, parameters) if training.offload_optimizer else 0
    reference = _bytes_per_weight(config) * parameters if training.offload_reference and _has_reference(config) else 0
    rank = (_training_state_bytes(config, parameters) - optimizer - reference) / training.ranks
    rank += _working_bytes(config, parameters)
    engine = MemoryDemand("an engine's GPU", _bytes_per_weight(config) * parameters / size, room)
    if training.placement == "colocated":
        demands = [engine, *_estimate_turns(config, parameters, rank, free)]
    else:
        demands = [engine, MemoryDemand("a training rank's GPU", rank, free)]
    if optimizer:
        demands.append(_on_host("the optimizer", optimizer / training.nodes))
    if reference:
        demands.append(_on_host("the reference", reference / training.nodes))
    return demands


def _on_host(what: str, needed: float) -> MemoryDemand:
    return MemoryDemand(f"{what} on the host", needed, read_available_memory(), on_host=True)


def _estimate_turns(config: Config, parameters: int, rank: float, free: float) -> list[MemoryDemand]:
    """Return the demands of GPUs that ranks and colocated engines use in turn.

    Args:
        rank: bytes of a rank while it trains. free: of the GPU.
    """
    training, weight = config.training, _bytes_per_weight(config)
    processes = 1 + _has_reference(config)
    shards = weight * parameters * processes / training.ranks
    waiting = shards + _GPU_RANK_BYTES * processes
    others = _SLEEPING_ENGINE_BYTES + _GPU_RANK_BYTES * (processes - 1)
    demands = [
        MemoryDemand("a rollout engine's share of a GPU", weight * parameters, training.engine_memory * free),
        MemoryDemand("a GPU while the engines sample", training.engine_memory * free + waiting, free),
        MemoryDemand("a GPU while the ranks train", rank + others, free),
    ]
    if not training.offload_optimizer:
        state = (weight + _OPTIMIZER_BYTES) * _trained_parameters(config, parameters) / training.nodes
        demands.append(_on_host("the update's state", state))
    return demands


def _working_bytes(config: Config, parameters: int) -> float:
    """Return the bytes that a rank's GPU needs besides its shards: libraries, gathered weights, activations, hpz."""
    training, weight = config.training, _bytes_per_weight(config)
    gathered = weight * min(parameters, _GATHERED_PARAMETERS)
    copy = weight * parameters / training.ranks_per_node if training.hpz and training.nodes > 1 else 0
    return _GPU_RANK_BYTES + gathered + copy + _activation_bytes(config)


def _activation_bytes(config: Config) -> float:
    """Return the bytes of the activations of the largest micro-batch; 0 if the model's shape is not known.

    All layers keep theirs, or with gradient checkpointing their input alone, and one layer has gradients of its own.
    """
    shape, training = find_shape(config.policy), config.training
    if shape is None:
        return 0
    stages = [stage for stage in (training.stage1, training.stage2) if stage.enabled]
    longest = config.policy.max_model_len
    tokens = max((stage.micro_batch_tokens or stage.micro_batch_size * longest for stage in stages), default=0)
    kept = shape.hidden * shape.layers + shape.activations
    if not training.gradient_checkpointing:
        kept = shape.activations * shape.layers
    return _bytes_per_weight(config) * tokens * (kept + shape.activations)


def refuse_too_little_memory(config: Config) -> None:
    """Raise InputError if a CPU machine has too little free memory to train the policy.

    Only weights, gradients, optimizer state and KV caches are counted. Does nothing on GPU.
    """
    from medssr_dist.runtime.device import on_gpu

    if on_gpu():
        return
    parameters, available = count_parameters(config.policy), read_available_memory()
    kv_cache = config.runtime.cpu_kv_cache_gib * 2**30
    needed = _training_state_bytes(config, parameters) + config.training.engines * (
        _bytes_per_weight(config) * parameters + kv_cache
    )
    if needed > available:
        raise InputError(
            f"policy.model = {config.policy.model!r} with {parameters / 1e6:,.0f}M parameters needs at least "
            f"{needed / 1e9:.1f} GB to train here, {available / 1e9:.1f} GB are free; take a smaller model, lower "
            "runtime.cpu_kv_cache_gib, or free some memory"
        )


def refuse_too_little_for_engines(config: Config) -> None:
    """Raise InputError if a CPU machine has too little free memory for the engines of an evaluation."""
    from medssr_dist.runtime.device import on_gpu

    if on_gpu():
        return
    parameters, available = count_parameters(config.policy), read_available_memory()
    engine = _bytes_per_weight(config) * parameters + config.runtime.cpu_kv_cache_gib * 2**30 + _ENGINE_BYTES
    if (needed := config.voting.engines * engine) > available:
        raise InputError(
            f"policy.model = {config.policy.model!r} with {parameters / 1e6:,.0f}M parameters needs about "
            f"{needed / 1e9:.1f} GB to answer here, {available / 1e9:.1f} GB are free; take a smaller model, lower "
            "runtime.cpu_kv_cache_gib, or free some memory"
        )


def _cpu_bytes(config: Config, parameters: int) -> float:
    """Return the bytes of a whole run on one CPU machine.

    In mode `stream` voting and training run at the same time; in mode `sequential` only the larger one counts.
    """
    training = config.training
    engine = _bytes_per_weight(config) * parameters + config.runtime.cpu_kv_cache_gib * 2**30 + _ENGINE_BYTES
    rank = _RANK_BYTES + _REFERENCE_BYTES * _has_reference(config)
    ranks = training.ranks * rank + _training_state_bytes(config, parameters)
    vote, train = config.voting.engines * engine, training.engines * engine + ranks
    return _DRIVER_BYTES + (vote + train if config.runtime.mode == "stream" else max(vote, train))


def _training_state_bytes(config: Config, parameters: int) -> float:
    """Return the bytes of training state, summed over all ranks.

    The state is the weights of the policy and of the reference model, and for each trained parameter its gradient and
    optimizer state.
    """
    weight_bytes = _bytes_per_weight(config)
    models = weight_bytes * parameters * (1 + _has_reference(config))
    return models + (weight_bytes + _OPTIMIZER_BYTES) * _trained_parameters(config, parameters)


def _bytes_per_weight(config: Config) -> int:
    """Return the bytes of one weight or one gradient."""
    return 4 if config.policy.dtype == "float32" else 2


def _trained_parameters(config: Config, parameters: int) -> int:
    """Return the number of trained parameters. The parameters of LoRA adapters are too few to count."""
    return 0 if config.training.lora_rank else parameters


def _has_reference(config: Config) -> bool:
    """Return whether a stage needs a reference model for its KL term."""
    return any(stage.enabled and stage.kl_coef > 0 for stage in (config.training.stage1, config.training.stage2))


def estimate_checkpoint_bytes(config: Config, parameters: int) -> float:
    """Return the most bytes that the two training stages occupy on disk at the same time.

    Each stage holds its newest checkpoints, the best one, the one that is being written, the exported model, and the
    exports that it may publish instead (`StageWatch`). The exports of `export_steps` are counted where the number of
    steps is configured.
    """
    checkpoint, model = estimate_one_checkpoint(config, parameters), _bytes_per_weight(config) * parameters
    total = 0.0
    for name in STAGES:
        stage = getattr(config.training, name)
        if stage.enabled:
            kept = stage.steps // stage.export_steps if stage.export_steps else 0
            exports = 1 + kept + count_candidates(config, name, stage.save_steps or choose_save_steps(checkpoint))
            total += checkpoint * (stage.keep_checkpoints + 2) + model * exports
    return total


def count_candidates(config: Config, stage: str, save_steps: int) -> int:
    """Return how many exported policies, besides the last one, a stage holds at most until it knows which it publishes.

    Candidates are deleted when a checkpoint is complete. With validation, only the best one stays; until the next
    checkpoint, each validation may add one. As long as no step was validated, a guard that may stop stage 1 needs the
    policies at all checkpoints within its window, one before it, and the one that the stage began with.

    Args:
        save_steps: steps from one checkpoint to the next.

    Example: with validation every 10 steps and a checkpoint every 25, 4
    """
    validation, guard = config.training.validation, config.training.find_guard(stage)
    by_validation = 1 + math.ceil(save_steps / validation.every) if validation else 0
    by_guard = 3 + math.ceil(guard.window / save_steps) if guard and guard.action == "stop" else 0
    return max(by_validation, by_guard)


def estimate_one_checkpoint(config: Config, parameters: int) -> float:
    """Return the bytes of one checkpoint: weights, and the fp32 weights and moments of the optimizer."""
    return _bytes_per_weight(config) * parameters + _OPTIMIZER_BYTES * _trained_parameters(config, parameters)


def find_parameters(policy: Policy) -> int | None:
    """Return the number of parameters of the policy: of its files, else of a well-known model of this name."""
    try:
        return count_parameters(policy)
    except InputError:
        shape = find_shape(policy)
        return shape.parameters if shape else None


def count_parameters(policy: Policy) -> int:
    """Return the number of parameters of the policy.

    The count comes from the headers of its safetensors files, or from the size of its `.bin` files, which are assumed
    to hold 16-bit weights.

    Raises:
        InputError: the model is not on this machine.
    """
    folder = find_policy_on_disk(policy)
    if folder is None:
        return _EMBEDDED_PARAMETERS
    weights = [weight for file in folder.glob("*.safetensors") for weight in read_stored_weights(file)]
    counted = sum(math.prod(weight.shape) for weight in weights)
    return counted or sum(file.stat().st_size for file in folder.glob("*.bin")) // 2
