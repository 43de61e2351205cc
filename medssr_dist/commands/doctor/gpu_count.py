"""Check the number of GPUs: does the config fit the GPUs of this machine, of the job, or of a partition?"""

from __future__ import annotations

import math
import os
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import Partition, list_partitions, read_host_name
from medssr_dist.config.schema import Config
from medssr_dist.runtime.cluster import count_slots, count_slots_at_once, read_ray_address

_USE_FEWER = "lower voting.engines, training.ranks_per_node or training.engines, or set runtime.mode=sequential"


def count_node_gpus() -> int | None:
    """Return the number of GPUs of this node.

    On CPU it is the number of logical GPUs that the node gives to Ray ($MEDSSR_SLOTS); None for as many as needed.
    """
    from medssr_dist.runtime.device import on_gpu

    if not on_gpu():
        return int(os.environ.get("MEDSSR_SLOTS") or 0) or None
    import torch

    return torch.cuda.device_count()


def check_gpus(config: Config, run_dir: Path) -> CheckResult:
    """Compare the config with the GPUs of this machine. If $RAY_ADDRESS is set, the cluster may have more."""
    return compare_gpus(config, {read_host_name(): count_node_gpus()}, joins_ray=bool(read_ray_address()))


def compare_gpus(config: Config, gpus: dict[str, int | None], joins_ray: bool = False) -> CheckResult:
    """Compare the GPUs that the config needs with those of the nodes, in total and on each node.

    Args:
        gpus: number of GPUs by node; None for as many as needed (on CPU).
        joins_ray: the run joins a running Ray cluster, which may have more nodes.
    """
    needs = f"{_describe_parts(config)}: {count_slots_at_once(config)} at once"
    counts = {host: count for host, count in gpus.items() if count is not None}
    if len(counts) < len(gpus):
        return CheckResult("pass", f"{needs}, as logical GPUs on {len(gpus)} nodes")
    have = f"{sum(counts.values())} GPUs are there ({', '.join(f'{node} {count}' for node, count in counts.items())})"
    shortage = _find_shortage(config, counts)
    if shortage and joins_ray:
        return CheckResult("warn", f"{needs}; {have}", "see that the Ray cluster has the others")
    if shortage:
        return CheckResult("fail", f"{needs}; {have}; {shortage}", f"ask Slurm for more nodes or GPUs; or {_USE_FEWER}")
    idle = sum(counts.values()) - count_slots_at_once(config)
    return CheckResult("pass", f"{needs}; {have}" + (f"; {idle} stay idle" if idle else ""))


def _find_shortage(config: Config, gpus: dict[str, int]) -> str:
    """Describe what does not fit; empty if everything fits."""
    training, most = config.training, max(gpus.values())
    for key, size in {
        "voting.tensor_parallel_size": config.voting.tensor_parallel_size,
        "training.tensor_parallel_size": training.tensor_parallel_size,
    }.items():
        if size > most:
            return f"{key} = {size} needs that many on one node"
    if sum(count >= training.ranks_per_node for count in gpus.values()) < training.nodes:
        return f"training.nodes = {training.nodes} need {training.ranks_per_node} each"
    missing = count_slots_at_once(config) - sum(gpus.values())
    return f"{missing} are missing" if missing > 0 else ""


def _describe_parts(config: Config) -> str:
    return ", ".join(f"{name} {count}" for name, count in count_slots(config).items() if count)


def check_job_size(config: Config, run_dir: Path) -> CheckResult:
    """On a login node, report what to request from Slurm, and whether a partition has it."""
    return fit_partitions(config, list_partitions())


def fit_partitions(config: Config, found: list[Partition]) -> CheckResult:
    """Report the options of sbatch for each partition that is large enough for the run."""
    slots = count_slots_at_once(config)
    needs = f"{_describe_parts(config)}: {slots} at once"
    if os.environ.get("MEDSSR_DEVICE") == "cpu":
        return CheckResult("pass", f"{needs}, as logical GPUs")
    with_gpus = [each for each in found if each.gpus]
    if not with_gpus:
        return CheckResult(
            "warn", f"{needs}; sinfo shows no GPUs", "run this where sinfo works, or set MEDSSR_DEVICE=cpu"
        )
    smallest = max(config.voting.tensor_parallel_size, config.training.ranks_per_node)
    fitting = [each for each in with_gpus if each.gpus >= smallest and each.gpus * each.nodes >= slots]
    if not fitting:
        have = ", ".join(f"{each.name} {each.nodes} x {each.gpus}" for each in with_gpus)
        return CheckResult("fail", f"{needs}; no partition holds them ({have})", _USE_FEWER)
    options = [
        f"--partition={each.name} --nodes={math.ceil(slots / each.gpus)} --gpus-per-node={each.gpus}"
        for each in fitting
    ]
    return CheckResult("pass", f"{needs}; sbatch {' or '.join(options[:3])}")
