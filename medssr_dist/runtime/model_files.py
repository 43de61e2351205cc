"""What the files of a model directory say about it: sizes, limits, stored weights. Nothing is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError

# Keys of config.json that limit prompt and answer together, as vLLM reads them.
_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
_KEEPS_LENGTH = ("su", "longrope", "llama3", "default")  # kinds of RoPE scaling whose length is already scaled
_INNER_SIZES = ("intermediate_size", "moe_intermediate_size", "n_inner")
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HEADS = ("lm_head", "embed_out")  # names of the output layer
# Settings of models that change the logits after the output layer; the training kernels do not support them.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class StoredWeight(NamedTuple):
    """A weight in a safetensors file; end: where its bytes end, after the header.

    Example: StoredWeight("model.embed_tokens.weight", (49152, 576), end=113246208)
    """

    name: str
    shape: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class ModelFacts:
    """What matters before a run, from config.json and the headers of the weights; None where they do not say it.

    positions: most tokens of prompt and answer together. heads, kv_heads: of attention. inner_sizes: widths of the MLP
    and of an expert. rows: of the embedding. stored_dtype: of the weights. quantized: method, "" for plain weights.
    logit_changes: what the model does to its logits after the output layer. missing_files: of weights.

    Example: ModelFacts("qwen3", True, positions=40960, heads=32, kv_heads=8, inner_sizes=(12288,), rows=151936,
        stored_dtype="bfloat16", quantized="", logit_changes=(), missing_files=())
    """

    model_type: str
    has_code: bool
    positions: int | None
    heads: int | None
    kv_heads: int | None
    inner_sizes: tuple[int, ...]
    rows: int | None
    stored_dtype: str | None
    quantized: str
    logit_changes: tuple[str, ...]
    missing_files: tuple[str, ...]


def read_model_facts(folder: Path) -> ModelFacts:
    """Read the facts of the model in `folder`. Raises InputError for a weight file that is cut."""
    whole = read_json(folder / "config.json")
    if not isinstance(whole, dict):
        raise InputError(f"{folder / 'config.json'} holds no object; copy or download the model again")
    text = whole.get("text_config") or whole
    weights = [weight for file in sorted(folder.glob("*.safetensors")) for weight in read_stored_weights(file)]
    heads = text.get("num_attention_heads", text.get("n_head"))
    return ModelFacts(
        model_type=str(whole.get("model_type", "")),
        has_code="auto_map" in whole,
        positions=_find_positions(text, str(whole.get("model_type", ""))),
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        inner_sizes=tuple(text[name] for name in _INNER_SIZES if text.get(name)),
        rows=min((w.shape[0] for w in weights if w.name.endswith(_EMBEDDINGS)), default=text.get("vocab_size")),
        stored_dtype=text.get("dtype", text.get("torch_dtype", whole.get("torch_dtype"))),
        quantized=str((whole.get("quantization_config") or {}).get("quant_method", "")),
        logit_changes=tuple(_find_logit_changes(text, weights)),
        missing_files=tuple(_find_missing_files(folder)),
    )


def read_stored_weights(file: Path) -> list[StoredWeight]:
    """Return the weights of a safetensors file, from its header.

    The file begins with the length of its JSON header (8 bytes, little-endian), followed by the header.

    Raises:
        InputError: the file is cut, is no safetensors file, or cannot be read.
    """
    try:
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = [StoredWeight(name, tuple(each["shape"]), each["data_offsets"][1]) for name, each in entries.items()]
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, MemoryError, RecursionError):
        raise InputError(f"{file} is no whole safetensors file; copy or download the model again") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); copy or download the model again") from None
    size, needed = file.stat().st_size, 8 + length + max((weight.end for weight in found), default=0)
    if size < needed:
        raise InputError(f"{file} has {size:,} of {needed:,} bytes; copy or download the model again")
    return found


def _find_positions(text: Mapping[str, Any], model_type: str) -> int | None:
    """Return the most tokens of a sequence, with the factor of RoPE scaling, as vLLM computes it."""
    known = [text[key] for key in _LENGTHS if text.get(key)]
    longest = text.get("model_max_length") or min(known, default=None)
    if longest is None or "gemma3" in model_type:
        return longest
    factor = 1.0
    for rope in _list_rope(text):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in _KEEPS_LENGTH:
            factor = rope.get("factor") or factor
        if not isinstance(factor, int | float):
            raise InputError(f"its RoPE scaling has factor = {factor!r}, which is no number; correct its config.json")
        if kind == "yarn":
            longest = rope.get("original_max_position_embeddings") or longest
    return math.floor(longest * factor)


def _list_rope(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of RoPE: one for the model, or one for each kind of layer."""
    found = text.get("rope_scaling") or text.get("rope_parameters") or {}  # as transformers: the older name counts
    nested = [each for each in found.values() if isinstance(each, dict)]
    yield from nested or [found]


def _find_missing_files(folder: Path) -> Iterator[str]:
    """Yield the files of weights that an index names and that are absent; "*.safetensors" if there are none at all."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        named |= set((read_json(index).get("weight_map") or {}).values())
    yield from (name for name in sorted(named) if not (folder / name).exists())
    if not named and not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        yield "*.safetensors"


def _find_logit_changes(text: Mapping[str, Any], weights: list[StoredWeight]) -> Iterator[str]:
    yield from (name for name in LOGIT_CHANGES if text.get(name) not in (None, 1.0))
    if any(weight.name.rpartition(".")[0].endswith(_HEADS) and weight.name.endswith(".bias") for weight in weights):
        yield "an output bias"
