"""Arithmetic of an update, and the share of the hardware's peak that it reached (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

# Dense 16-bit peak of a GPU, FLOP/s, by a part of torch's name for it; the first that fits. Makers' data sheets.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)


@dataclass(frozen=True)
class ModelWork:
    """Weights that tokens are multiplied with, whole over all ranks.

    body: of all layers. body_trained: those with a gradient. head, head_trained: of the output layer.
    attention: layers x heads x head size.
    """

    body: int
    body_trained: int
    head: int
    head_trained: int
    attention: int

    def update_flops(self, lengths: torch.Tensor, actions: int) -> float:
        """Floating-point operations of forward and backward for sequences of these `lengths` [B].

            tokens x (4 body + 2 body_trained) + actions x (4 head + 2 head_trained) + 6 attention x sum(length^2)

        A weight costs 2 a token forward, 2 for the gradient of its input and, where it is trained, 2 for its own.
        Causal attention has length^2 / 2 pairs, 4 operations each a unit of attention forward, and twice that
        backward. The output layer sees the `actions` alone. Activations computed again (checkpointing), the passes
        for old and reference log-probs, norms and the optimizer do not count: this is the model's own work.
        """
        tokens, pairs = int(lengths.sum()), int((lengths.long() ** 2).sum())
        body = tokens * (4 * self.body + 2 * self.body_trained)
        return body + actions * (4 * self.head + 2 * self.head_trained) + 6 * self.attention * pairs


def count_model_work(model: nn.Module) -> ModelWork:
    """Of a Hugging Face causal language model, whole or in ZeRO-3 shards, with adapters or without.

    All experts of a mixture count, also those that a token does not go through.
    """
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    body = [weight for weight in model.parameters() if weight is not head and weight is not embedding]
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelWork(
        body=sum(map(_size, body)),
        body_trained=sum(_size(weight) for weight in body if weight.requires_grad),
        head=_size(head),
        head_trained=_size(head) if head.requires_grad else 0,
        attention=config.num_hidden_layers * config.num_attention_heads * head_size,
    )


def _size(weight: nn.Parameter) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def peak_flops(peak_tflops: float, dtype: str) -> float | None:
    """FLOP/s of one GPU: what the config gives, else by the name of a known GPU in 16 bits; None if neither."""
    if peak_tflops:
        return peak_tflops * 1e12
    if dtype == "float32" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in _PEAKS if part in name), None)


def compute_mfu(flops: float, seconds: float, ranks: int, peak: float) -> float:
    """Model FLOPs utilization (arXiv 2204.02311 appendix B): flops / (seconds x ranks x peak FLOP/s of one GPU)."""
    return flops / (seconds * ranks * peak)
