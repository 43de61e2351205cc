"""The sizes of a policy's layers, from its config.json, or for well-known models from the table here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError
from medssr_dist.runtime.models import find_policy_on_disk

_QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
# Hugging Face config of each shape, as published with the model.
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-1.7B": _QWEN3
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder of Llama's kind.

    Example: ModelShape(layers=36, hidden=4096, intermediate=12288, query=4096, key_value=1024, vocab=151936,
        tied=False).parameters == 8_190_726_144

    Attributes:
        query, key_value: heads x head size, of queries, and of keys (those of values are equal).
        tied: whether output layer and embedding share their weights.
    """

    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocab: int
    tied: bool

    @property
    def body(self) -> int:
        """Weights of all layers, without embedding, output layer and norms."""
        attention = self.hidden * (2 * self.query + 2 * self.key_value)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        norms = self.hidden * (2 * self.layers + 1)
        return self.body + norms + self.head * (1 if self.tied else 2)

    @property
    def activations(self) -> int:
        """Numbers that one layer keeps of one token for the backward pass, as transformers' layers compute it.

        The inputs of the two norms (in 32 bits, so twice) and what they return; queries and keys before and after their
        rotation, values, and the output of attention; and four of the MLP: gate, its activation, up, and the product.
        """
        return 6 * self.hidden + 3 * self.query + 3 * self.key_value + 4 * self.intermediate

    def cache_bytes(self, bytes_per_number: int = 2) -> int:
        """Return the bytes of keys and values of one token."""
        return 2 * self.layers * self.key_value * bytes_per_number


def read_shape(values: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a Hugging Face config describes. Raises KeyError for a model of another kind."""
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_size = values.get("head_dim") or hidden // heads
    return ModelShape(
        layers=values["num_hidden_layers"],
        hidden=hidden,
        intermediate=values["intermediate_size"],
        query=heads * head_size,
        key_value=(values.get("num_key_value_heads") or heads) * head_size,
        vocab=values["vocab_size"],
        tied=bool(values.get("tie_word_embeddings", False)),
    )


def find_shape(policy: Policy) -> ModelShape | None:
    """Return the shape of the policy: of its files, or else of a well-known model of this name; None if unknown.

    Example: that of "Qwen/Qwen3-8B-Base" is known without its files.
    """
    try:
        folder = find_policy_on_disk(policy)
        return read_shape(read_json(folder / "config.json")) if folder else read_shape(SHAPES["SmolLM2-135M"])
    except KeyError:
        return None
    except InputError:
        name = policy.model.rpartition("/")[2].removesuffix("-Base").removesuffix("-Instruct")
        return read_shape(SHAPES[name]) if name in SHAPES else None
