"""Checks for NaN and infinities after an update: in its metrics, and in the weights, by each rank in its own shards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# If gradients are NaN, DeepSpeed returns a finite gradient norm: -1 for each group of weights, so the square root of 2
# for two groups. A finite norm therefore proves nothing, and the weights are checked too.
_METRICS = ("loss", "policy_loss", "kl", "grad_norm")
_MOST_NAMED = 3


def find_bad_metrics(update: dict[str, float]) -> dict[str, float]:
    """Return name -> value of those among the loss, its terms and the gradient norm that are NaN or infinite."""
    values = {name: float(update[name]) for name in _METRICS if name in update}
    return {name: value for name, value in values.items() if not math.isfinite(value)}


def find_bad_weights(module: torch.nn.Module) -> dict[str, float]:
    """Return name -> NaN or infinity, for weights of a ZeRO-3 module that contain one in this rank's shard."""
    found = {}
    for name, weight in module.named_parameters():
        shard = get_own_part(weight)
        for bound in shard.aminmax() if shard.numel() else ():  # with a NaN, both bounds are NaN
            if not math.isfinite(bound):
                found[name] = float(bound)
    return found


def get_own_part(weight: torch.nn.Parameter) -> torch.Tensor:
    """Return this rank's part of a ZeRO-3 weight, without the padding of the last shards, which is uninitialised."""
    shard = weight.ds_tensor
    return shard[: max(0, weight.ds_numel - weight.ds_zero_partition_rank * shard.ds_numel)]


def describe_bad(metrics: dict[str, float], weights: dict[str, float]) -> str:
    """Return a short description of bad metrics and weights.

    Example: "loss is nan, weight lm_head.weight holds nan (and 2 more weights)"
    """
    parts = [f"{name} is {value}" for name, value in metrics.items()]
    parts += [f"weight {name} holds {value}" for name, value in list(weights.items())[:_MOST_NAMED]]
    more = len(weights) - _MOST_NAMED
    return ", ".join(parts) + (f" (and {more} more weights)" if more > 0 else "")
