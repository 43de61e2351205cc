"""Weights that replace those of a running vLLM engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class WeightReload:
    """What each of vLLM's workers can do in addition: vLLM makes it a base class of them (`worker_extension_cls`)."""

    model_runner: Any
    reload_weights: Any

    def load_weights_from(self, folder: str) -> None:
        """Load the weights of another model, which have the names and shapes of those that the worker has."""
        self.reload_weights(weights_path=folder)
        repack_tied_heads(self.model_runner.get_model())


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Make the output heads that share their weight with an embedding use its new values.

    On CPU, vLLM multiplies by a packed copy of each weight. A reload packs only the layers that were given a weight
    themselves, and a tied head is given none: it would multiply by the first weights for ever (docs/upstream.md).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    heads: list[Any] = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embedded = {layer.weight.data_ptr() for layer in layers if not isinstance(layer, ParallelLMHead)}
    for head in heads:
        if head.weight.data_ptr() in embedded:
            head.quant_method.process_weights_after_loading(head)
