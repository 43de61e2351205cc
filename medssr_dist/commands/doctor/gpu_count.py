"""Do the GPUs of the config fit those that are there?"""

from __future__ import annotations

import math
import os
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import Partition, list_partitions, read_host_name
from medssr_dist.config.schema import Config
from medssr_dist.runtime.cluster import slots_in_use, slots_needed

_FEWER = "lower voting.engines, training.ranks_per_node or training.engines, or set runtime.mode=sequential"


def count_node_gpus() -> int | None:
    """GPUs of this node; on CPU the logical ones that it will give Ray ($MEDSSR_SLOTS), None: as many as needed."""
    from medssr_dist.runtime.device import on_gpu

    if not on_gpu():
        return int(os.environ.get("MEDSSR_SLOTS") or 0) or None
    import torch

    return torch.cuda.device_count()


def check_gpus(config: Config, run_dir: Path) -> CheckResult:
    """This machine alone, where no Ray cluster is named."""
    return compare_gpus(config, {read_host_name(): count_node_gpus()}, joins_ray="RAY_ADDRESS" in os.environ)


def compare_gpus(config: Config, gpus: dict[str, int | None], joins_ray: bool = False) -> CheckResult:
    """The sum over all parts, and what cannot be spread over nodes.

    Args:
        gpus: node -> its GPUs; None: as many as are needed (on CPU).
        joins_ray: further nodes may be in a Ray cluster that runs already.
    """
    asked = f"{_parts(config)}: {slots_in_use(config)} at once"
    if None in gpus.values():
        return CheckResult("pass", f"{asked}, as logical GPUs on {len(gpus)} nodes")
    have = f"{sum(gpus.values())} GPUs are there ({', '.join(f'{node} {count}' for node, count in gpus.items())})"
    short = _short(config, gpus)
    if short and joins_ray:
        return CheckResult("warn", f"{asked}; {have}", "see that the Ray cluster has the others")
    if short:
        return CheckResult("fail", f"{asked}; {have}; {short}", f"ask Slurm for more nodes or GPUs; or {_FEWER}")
    idle = sum(gpus.values()) - slots_in_use(config)
    return CheckResult("pass", f"{asked}; {have}" + (f"; {idle} stay idle" if idle else ""))


def _short(config: Config, gpus: dict[str, int]) -> str:
    """What does not fit, in words; empty where all does."""
    training, most = config.training, max(gpus.values())
    for key, size in {
        "voting.tensor_parallel_size": config.voting.tensor_parallel_size,
        "training.tensor_parallel_size": training.tensor_parallel_size,
    }.items():
        if size > most:
            return f"{key} = {size} needs so many on one node"
    if sum(count >= training.ranks_per_node for count in gpus.values()) < training.nodes:
        return f"training.nodes = {training.nodes} need {training.ranks_per_node} each"
    missing = slots_in_use(config) - sum(gpus.values())
    return f"{missing} are missing" if missing > 0 else ""


def _parts(config: Config) -> str:
    return ", ".join(f"{name} {count}" for name, count in slots_needed(config).items() if count)


def check_job_size(config: Config, run_dir: Path) -> CheckResult:
    """On a login node: what to ask Slurm for, and whether a partition has it."""
    return fit_partitions(config, list_partitions())


def fit_partitions(config: Config, found: list[Partition]) -> CheckResult:
    """The job's size in each partition that can hold it."""
    slots = slots_in_use(config)
    asked = f"{_parts(config)}: {slots} at once"
    if os.environ.get("MEDSSR_DEVICE") == "cpu":
        return CheckResult("pass", f"{asked}, as logical GPUs")
    with_gpus = [each for each in found if each.gpus]
    if not with_gpus:
        return CheckResult(
            "warn", f"{asked}; sinfo shows no GPUs", "run this where sinfo works, or set MEDSSR_DEVICE=cpu"
        )
    smallest = max(config.voting.tensor_parallel_size, config.training.ranks_per_node)
    fitting = [each for each in with_gpus if each.gpus >= smallest and each.gpus * each.nodes >= slots]
    if not fitting:
        have = ", ".join(f"{each.name} {each.nodes} x {each.gpus}" for each in with_gpus)
        return CheckResult("fail", f"{asked}; no partition holds them ({have})", _FEWER)
    options = [
        f"--partition={each.name} --nodes={math.ceil(slots / each.gpus)} --gpus-per-node={each.gpus}"
        for each in fitting
    ]
    return CheckResult("pass", f"{asked}; sbatch {' or '.join(options[:3])}")
