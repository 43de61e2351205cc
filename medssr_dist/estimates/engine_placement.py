"""Where the rollout engines run: on GPUs of their own (split), or in turn with the ranks on theirs (colocated).

`choose_placement` is the one place where `training.placement: auto` is resolved, for runs, dry runs and the doctor.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import estimate_memory, find_parameters
from medssr_dist.runtime.device import on_gpu, read_gpu_count

_GPUS_PER_NODE = 8  # of a node that is not here


@dataclass(frozen=True)
class PlacementChoice:
    """A config whose `training.placement` is split or colocated, and why, in words."""

    config: Config
    reason: str


def choose_placement(config: Config) -> PlacementChoice:
    """Resolve `training.placement`.

    Raises:
        InputError: the config asks for colocated engines, and the predicted memory does not suffice.
    """
    training = config.training
    if not (training.stage1.enabled or training.stage2.enabled):
        return _place(config, "split", "nothing is trained")
    if training.placement == "split":
        return _place(config, "split", "as configured")
    colocated = _place(config, "colocated", "as configured")
    lacking = _find_lacking_memory(colocated.config)
    if training.placement == "colocated":
        if lacking:
            raise InputError(f"training.placement = colocated: {lacking}; set training.placement=split")
        return colocated
    if not on_gpu():
        return _place(config, "split", "auto: on CPU, ranks and engines share the cores in any case")
    needed, there = training.ranks + training.engines * training.tensor_parallel_size, _count_gpus(config)
    if needed <= there:
        return _place(config, "split", f"auto: the job's {there} GPUs hold ranks and engines")
    if unfit := training.find_unfit_for_turns():
        return _place(config, "split", f"auto: not colocated, {unfit.partition(';')[0]}")
    if find_parameters(config.policy) is None:
        return _place(config, "split", "auto: not colocated, the size of the policy is not known")
    if lacking:
        return _place(config, "split", f"auto: not colocated, {lacking}")
    reason = f"auto: ranks and engines are {needed}, the job has {there} GPUs, and the predicted memory suffices"
    return _place(config, "colocated", reason)


def _place(config: Config, placement: str, reason: str) -> PlacementChoice:
    training = config.training.model_copy(update={"placement": placement})
    return PlacementChoice(config.model_copy(update={"training": training}), reason)


def _count_gpus(config: Config) -> int:
    """Return the GPUs of the job; nodes that are not here are taken to have as many as this one, or eight."""
    nodes = max(config.training.nodes, int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    return nodes * (read_gpu_count() or _GPUS_PER_NODE)


def _find_lacking_memory(config: Config) -> str:
    """Describe the memory that a colocated run lacks on GPUs; "" if there is enough, or its need is not known.

    Where no GPU is visible, the host is not the one that the run will have.
    """
    parameters = find_parameters(config.policy)
    if parameters is None or not on_gpu():
        return ""
    for each in estimate_memory(config, parameters):
        is_known = not each.on_host or read_gpu_count() is not None
        if is_known and each.needed > each.available:
            return f"{each.what} needs about {each.needed / 1e9:.0f} GB of {each.available / 1e9:.0f} GB"
    return ""
