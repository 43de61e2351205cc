"""Has an update left numbers? Looked at are its metrics, and each ZeRO rank's own shards of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# OpenRLHF's name -> that of metrics.jsonl. Of NaN gradients DeepSpeed makes a gradient norm that is a finite number (-1
# for each group of weights; for two the root of 2): that it is finite shows nothing, so the weights are looked at too.
_METRICS = {"loss": "loss", "policy_loss": "policy_loss", "kl": "kl", "actor_grad_norm": "grad_norm"}
_NAMED = 3


def bad_metrics(status: dict[str, float]) -> dict[str, float]:
    """Name -> value of the loss, its terms and the gradient norm, where they are NaN or infinite."""
    values = {name: float(status[key]) for key, name in _METRICS.items() if key in status}
    return {name: value for name, value in values.items() if not math.isfinite(value)}


def bad_weights(module: torch.nn.Module) -> dict[str, float]:
    """Name -> NaN or infinity, of the weights of a ZeRO-3 module that hold one in this rank's shard."""
    found = {}
    for name, weight in module.named_parameters():
        shard = own_part(weight)
        for bound in shard.aminmax() if shard.numel() else ():  # NaN is both bounds
            if not math.isfinite(bound):
                found[name] = float(bound)
    return found


def own_part(weight: torch.nn.Parameter) -> torch.Tensor:
    """What this rank holds of a ZeRO-3 weight, without the padding of the last shards, which is never written."""
    shard = weight.ds_tensor
    return shard[: max(0, weight.ds_numel - weight.ds_zero_partition_rank * shard.ds_numel)]


def told(metrics: dict[str, float], weights: dict[str, float]) -> str:
    """Quantities and values in words. Example: "loss is nan, weight lm_head.weight holds nan (and 2 more weights)"."""
    parts = [f"{name} is {value}" for name, value in metrics.items()]
    parts += [f"weight {name} holds {value}" for name, value in list(weights.items())[:_NAMED]]
    more = len(weights) - _NAMED
    return ", ".join(parts) + (f" (and {more} more weights)" if more > 0 else "")
