"""Fit a config written for one node, or a few, to the nodes of a job, so that the same config runs on 1 and on N."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.run.paths import STAGES
from medssr_dist.runtime.cluster import count_slots_at_once
from medssr_dist.secret_registry import list_variables


@dataclass(frozen=True)
class FittedConfig:
    """Overrides that fit a config to a job.

    Example: FittedConfig(overrides=["training.nodes=4", "training.engines=4", "voting.engines=4"], slots=4)

    Attributes:
        overrides: the user's overrides, then the added ones.
        slots: logical GPUs that a CPU node needs; 0 on nodes with GPUs.
        secrets: names of the environment variables that hold the config's API keys.
    """

    overrides: list[str]
    slots: int
    secrets: tuple[str, ...] = field(default=(), compare=False)


def fit_config(config_file: Path, overrides: list[str], nodes: int, gpus: int, step: str) -> FittedConfig:
    """Return the overrides that spread the config over `nodes` nodes.

    A config for `training.nodes` nodes is repeated as often as it fits: training ranks and engines grow in proportion.
    Batch and learning rate grow as `training.scale_batch` says. Settings that the user overrides stay as they are.

    Args:
        gpus: real GPUs of a node; 0 on CPU.
    Raises:
        InputError: the config is invalid, `nodes` is not a multiple of its nodes, or its batch is too small.
    """
    config = load_config(config_file, overrides)
    given = {override.partition("=")[0] for override in overrides}
    values = _scale_config(config, nodes) if "training.nodes" not in given else {}
    added = [f"{key}={value}" for key, value in values.items() if key not in given]
    fitted = load_config(config_file, [*overrides, *added])
    slots = 0 if gpus or step == "synthesize" else -(-count_slots_at_once(fitted) // nodes)
    return FittedConfig([*overrides, *added], slots, list_variables())


def _scale_config(config: Config, nodes: int) -> dict[str, int | float]:
    training = config.training
    if nodes % training.nodes:
        raise InputError(
            f"the config is laid out for {training.nodes} nodes (training.nodes), the job has {nodes}; "
            f"ask for a multiple of {training.nodes} nodes"
        )
    return _scale_batch(config, nodes // training.nodes) | {
        "training.nodes": nodes,
        "training.engines": training.engines * nodes // training.nodes,
        "voting.engines": config.voting.engines * nodes // training.nodes,
    }


def _scale_batch(config: Config, times: int) -> dict[str, int | float]:
    """Return prompts_per_step and learning_rate of each stage for `times` as many nodes."""
    if times == 1 or config.training.scale_batch == "none":
        return {}
    growth = times if config.training.scale_batch == "linear" else math.sqrt(times)
    values: dict[str, int | float] = {}
    for name in STAGES:
        stage = getattr(config.training, name)
        values[f"training.{name}.prompts_per_step"] = round(stage.prompts_per_step * growth)
        values[f"training.{name}.learning_rate"] = stage.learning_rate * growth
    return values
