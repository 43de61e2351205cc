"""Fit a config, which is written for one node or a few, to the nodes of the job: the same config runs on 1 and on N."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.runtime.cluster import count_slots_at_once


def fit_config(config_file: Path, overrides: list[str], nodes: int, gpus: int, step: str) -> tuple[list[str], int]:
    """The overrides that spread the config over `nodes` nodes, and the logical GPUs a CPU node then has.

    A config for `training.nodes` nodes is laid out as many times as it fits: training ranks and engines grow in
    proportion. The batch stays the same. What the user overrides is left as it is.

    Args:
        gpus: real GPUs of a node; 0 on CPU.
    Raises:
        InputError: the config is bad, `nodes` is no multiple of its nodes, or its batch too small for the ranks.
    """
    config = load_config(config_file, overrides)
    given = {override.partition("=")[0] for override in overrides}
    values = _scaled(config, nodes) if "training.nodes" not in given else {}
    added = [f"{key}={value}" for key, value in values.items() if key not in given]
    fitted = load_config(config_file, [*overrides, *added])
    slots = 0 if gpus or step == "synthesize" else -(-count_slots_at_once(fitted) // nodes)
    return [*overrides, *added], slots


def _scaled(config: Config, nodes: int) -> dict[str, int]:
    training = config.training
    if nodes % training.nodes:
        raise InputError(
            f"the config is laid out for {training.nodes} nodes (training.nodes), the job has {nodes}; "
            f"ask for a multiple of {training.nodes} nodes"
        )
    return {
        "training.nodes": nodes,
        "training.engines": training.engines * nodes // training.nodes,
        "voting.engines": config.voting.engines * nodes // training.nodes,
    }
