"""A policy with adapters as the whole model that others know: Hugging Face names, adapters merged into their weights.

Rollout engines, the next stage, evaluation and users load plain checkpoints: adapters are trained, never published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_BASE, _ADAPTED = "base_model.model.", ".base_layer"


@dataclass(frozen=True)
class Exported:
    """One weight of the whole model. Under ZeRO-3 `value()` needs all of `parameters` gathered.

    name: as in a Hugging Face checkpoint. shape, dtype: of the whole weight.
    """

    name: str
    parameters: list[nn.Parameter]
    value: Callable[[], torch.Tensor]

    @property
    def shape(self) -> torch.Size:
        return getattr(self.parameters[0], "ds_shape", self.parameters[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype


def exported(model: nn.Module) -> list[Exported]:
    """Every weight of a Hugging Face or PEFT model, in its own order; adapters are part of what they adapt."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    found = []
    for name, weight in model.named_parameters():
        layer = adapted.get(name.removesuffix(".weight").removesuffix(_ADAPTED))
        if layer is None:
            found.append(Exported(name.removeprefix(_BASE), [weight], weight.detach))
        elif name.endswith(_ADAPTED + ".weight"):
            found.append(_merged(name.removeprefix(_BASE).replace(_ADAPTED, ""), layer))
        elif _ADAPTED in name:
            found.append(Exported(name.removeprefix(_BASE).replace(_ADAPTED, ""), [weight], weight.detach))
    return [each for each in found if ".lora_" not in each.name]


def _merged(name: str, layer) -> Exported:
    (adapter,) = layer.active_adapters
    weight = layer.base_layer.weight

    def value() -> torch.Tensor:
        with torch.no_grad():
            return (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)

    return Exported(name, [weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight], value)


def save_merged(model: nn.Module, tokenizer, folder: Path, writes: bool) -> None:
    """Write a PEFT model in ZeRO-3 shards as a plain checkpoint. All ranks call it; one of them `writes`."""
    import deepspeed

    weights = {}
    for each in exported(model):
        with deepspeed.zero.GatheredParameters(each.parameters):
            if writes:
                weights[each.name] = each.value().cpu().clone()
    if writes:
        model.get_base_model().save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
