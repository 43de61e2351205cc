"""Floating-point operations of an update, and the model FLOPs utilization (MFU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

# Dense 16-bit peak of a GPU in FLOP/s, from data sheets, by a part of its name in torch; the first match counts.
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
    """Numbers of weights that tokens are multiplied with, over all ranks.

    body: weights of all layers. body_trained: those with a gradient. head, head_trained: the same for the output layer.
    attention: layers x heads x head size.

    Example: ModelWork(body=100, body_trained=100, head=10, head_trained=10, attention=4)
    """

    body: int
    body_trained: int
    head: int
    head_trained: int
    attention: int

    def count_update_flops(self, length_B: torch.Tensor, actions: int) -> float:
        """Return the floating-point operations of forward and backward for sequences of these lengths (tokens).

            tokens x (4 body + 2 body_trained) + actions x (4 head + 2 head_trained) + 6 attention x sum(length^2)

        For each token, a weight costs 2 operations forward, 2 for the gradient of its input and, if it is trained, 2
        for its own gradient. Causal attention has length^2 / 2 pairs of tokens; each costs 4 operations forward for
        each unit of `attention`, and twice as many backward. The output layer processes only the `actions`. Not
        counted: recomputed activations (gradient checkpointing), forward passes for old and reference log-probs,
        norms, and the optimizer.
        """
        tokens, pairs = int(length_B.sum()), int((length_B.long() ** 2).sum())
        body = tokens * (4 * self.body + 2 * self.body_trained)
        return body + actions * (4 * self.head + 2 * self.head_trained) + 6 * self.attention * pairs


def count_model_work(model: nn.Module) -> ModelWork:
    """Count the weights of a Hugging Face causal language model, whole or in ZeRO-3 shards, with or without adapters.

    All experts of a mixture of experts are counted, also those that a token does not use.
    """
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    body = [weight for weight in model.parameters() if weight is not head and weight is not embedding]
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelWork(
        body=sum(map(_count_elements, body)),
        body_trained=sum(_count_elements(weight) for weight in body if weight.requires_grad),
        head=_count_elements(head),
        head_trained=_count_elements(head) if head.requires_grad else 0,
        attention=config.num_hidden_layers * config.num_attention_heads * head_size,
    )


def _count_elements(weight: nn.Parameter) -> int:
    return getattr(weight, "ds_numel", weight.numel())


def find_peak_flops(peak_tflops: float, dtype: str) -> float | None:
    """Return the peak FLOP/s of one GPU: `peak_tflops` if set, else that of a known GPU in 16 bits, else None."""
    if peak_tflops:
        return peak_tflops * 1e12
    if dtype == "float32" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in _PEAKS if part in name), None)


def compute_mfu(flops: float, seconds: float, ranks: int, peak: float) -> float:
    """Return the model FLOPs utilization (arXiv 2204.02311 appendix B): flops / (seconds x ranks x peak of one GPU)."""
    return flops / (seconds * ranks * peak)
