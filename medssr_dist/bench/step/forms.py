"""The forms of a step that `medssr bench step` compares: numbers of nodes, and settings of rollout and update."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.estimates.model_shape import ModelShape

# Settings by the name of the form; the first two are for comparison: what earlier versions had.
_CORRECTED = ("training.stage1.importance=token", "training.stage2.importance=token")
_EARLIER = (
    "training.offload_optimizer=true",
    "training.max_num_seqs=128",
    "training.stage1.micro_batch_tokens=8192",
    "training.stage2.micro_batch_tokens=8192",
)
AHEAD = "over-draw, sampling during training"
GROWN = "sampling during training, batch grown"  # AHEAD, on more nodes
_COLOCATED = ("training.placement=colocated", "training.ranks_per_node=8", "training.engines=8")
FORMS: dict[str, tuple[str, ...]] = {
    "earlier versions": _EARLIER,
    "as configured": (),
    "over-draw": ("training.over_draw=true", "training.max_policy_lag=1", *_CORRECTED),
    AHEAD: (
        "training.over_draw=true",
        "training.max_policy_lag=2",
        *_CORRECTED,
    ),
    "over-draw, sampling three steps ahead": ("training.over_draw=true", "training.max_policy_lag=4", *_CORRECTED),
    "colocated": _COLOCATED,
    "colocated, over-draw": (*_COLOCATED, "training.over_draw=true", "training.max_policy_lag=1", *_CORRECTED),
}

# Lengths of answers of an 8B model that reasons step by step: nobody has measured them for this policy here.
_MEAN_LENGTH, _SPREAD, _LENGTHS = 600, 0.55, 4000


def load_form(config_file: Path, overrides: tuple[str, ...], nodes: int, growth: float = 1.0) -> Config:
    """Load a config spread over `nodes` nodes, with the settings of a form and a batch that is `growth` times larger.

    Variables of the config that hold addresses, keys and folders are not used here, and need not be set.
    """
    for name, value in {"API_BASE": "http://127.0.0.1:9/v1", "API_MODEL": "unused", "API_KEY": "unused-k-0000"}.items():
        os.environ.setdefault(f"MEDSSR_{name}", value)
    os.environ.setdefault("MEDSSR_DATA", "/unused")
    config = load_config(config_file, list(overrides))
    training, times = config.training, nodes // config.training.nodes
    added = [
        f"training.nodes={nodes}",
        f"training.engines={training.engines * times}",
        f"voting.engines={config.voting.engines * times}",
        *(
            f"training.{name}.prompts_per_step={round(getattr(training, name).prompts_per_step * growth)}"
            for name in ("stage1", "stage2")
        ),
    ]
    return load_config(config_file, [*overrides, *added])


def assume_lengths(stage: Stage, seed: int = 1) -> list[int]:
    """Return lengths of answers, lognormal around a mean of 600 tokens and cut at the stage's limit."""
    draw, middle = random.Random(seed), math.log(_MEAN_LENGTH) - _SPREAD**2 / 2
    return [min(stage.max_new_tokens, max(8, round(draw.lognormvariate(middle, _SPREAD)))) for _ in range(_LENGTHS)]


def count_model_flops(shape: ModelShape, lengths: list[int], prompt_tokens: float, samples: int) -> float:
    """Return the FLOP of a step's update, as `training/update/flops.py` counts them, for full training."""
    share = samples / len(lengths)
    tokens = sum(length + prompt_tokens for length in lengths) * share
    pairs = sum((length + prompt_tokens) ** 2 for length in lengths) * share
    actions = sum(lengths) * share
    return 6 * shape.body * tokens + 6 * shape.head * actions + 6 * shape.layers * shape.query * pairs
