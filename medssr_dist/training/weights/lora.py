"""The weights of a policy as a plain Hugging Face checkpoint has them, with LoRA adapters merged.

Rollout engines, the next stage, evaluation and users load plain checkpoints. Adapters are trained but never published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedTokenizerBase

_BASE, _ADAPTED = "base_model.model.", ".base_layer"


@dataclass(frozen=True)
class PlainWeight:
    """One weight of the plain model.

    name: its name in a Hugging Face checkpoint. parameters: the parameters that it is computed from. value: computes
    it; under ZeRO-3 all of `parameters` must be gathered. shape, dtype: those of the whole weight.

    Example: PlainWeight("lm_head.weight", [parameter], parameter.detach)
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


def list_weights(model: nn.Module) -> list[PlainWeight]:
    """Return all weights of a Hugging Face or PEFT model, in the model's order, with adapters merged."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    found = []
    for name, weight in model.named_parameters():
        layer = adapted.get(name.removesuffix(".weight").removesuffix(_ADAPTED))
        if layer is None:
            found.append(PlainWeight(name.removeprefix(_BASE), [weight], weight.detach))
        elif name.endswith(_ADAPTED + ".weight"):
            found.append(_merge_adapter(name.removeprefix(_BASE).replace(_ADAPTED, ""), layer))
        elif _ADAPTED in name:
            found.append(PlainWeight(name.removeprefix(_BASE).replace(_ADAPTED, ""), [weight], weight.detach))
    return [each for each in found if ".lora_" not in each.name]


def _merge_adapter(name: str, layer: LoraLayer) -> PlainWeight:
    (adapter,) = layer.active_adapters
    weight = layer.base_layer.weight

    def value() -> torch.Tensor:
        with torch.no_grad():
            return (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)

    return PlainWeight(name, [weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight], value)


def save_merged(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, is_writer: bool) -> None:
    """Write a PEFT model in ZeRO-3 shards as a plain Hugging Face checkpoint into `folder`.

    A collective: all ranks call it, and one of them, the writer, writes the files.
    """
    import deepspeed

    weights = {}
    for each in list_weights(model):
        with deepspeed.zero.GatheredParameters(each.parameters):
            if is_writer:
                weights[each.name] = each.value().cpu().clone()
    if is_writer:
        model.get_base_model().save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
