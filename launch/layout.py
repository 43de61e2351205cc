"""Fit a config, which is written for one node or a few, to the nodes of the job: the same config runs on 1 and on N."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.config_io import load_config
from medssr_dist.errors import InputError
from medssr_dist.runtime.cluster import slots_in_use

_SCALED = ("training.nodes", "training.engines", "voting.engines")


def layout(config_file: Path, overrides: list[str], nodes: int, gpus: int, step: str) -> tuple[list[str], int]:
    """The overrides that spread the config over `nodes` nodes, and the logical GPUs a CPU node then has.

    A config for `training.nodes` nodes is laid out as many times as it fits: training ranks and engines grow in
    proportion. What the user overrides is left as it is.

    Args:
        gpus: real GPUs of a node; 0 on CPU.
    Raises:
        InputError: the config is bad, or `nodes` is no multiple of its nodes.
    """
    config = load_config(config_file, overrides)
    written_for = config.training.nodes
    given = {override.partition("=")[0] for override in overrides}
    if "training.nodes" not in given and nodes % written_for:
        raise InputError(
            f"{config_file} is laid out for {written_for} nodes (training.nodes), the job has {nodes}; "
            f"ask for a multiple of {written_for} nodes"
        )
    values = {
        "training.nodes": nodes,
        "training.engines": config.training.engines * nodes // written_for,
        "voting.engines": config.voting.engines * nodes // written_for,
    }
    added = [f"{key}={values[key]}" for key in _SCALED if key not in given]
    fitted = load_config(config_file, [*overrides, *added])
    slots = 0 if gpus or step == "synthesize" else -(-slots_in_use(fitted) // nodes)
    return [*overrides, *added], slots
