"""Whether two models differ in their weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.runtime.models import load_tokenizer

_OF_NO_EFFECT = ("_name_or_path", "transformers_version", "use_cache")  # for what an engine answers


def differ_in_weights_alone(first: Path, second: Path, policy: Policy) -> bool:
    """Return whether an engine of one model answers like the other once it has the other's weights.

    Compares config, generation config and tokenizer. Returns False if a model contains code, or if its tokenizer has no
    fast form, as these are not compared.
    """
    if any("auto_map" in read_json(folder / "config.json") for folder in (first, second)):
        return False
    known = _describe(first, policy)
    return known is not None and known == _describe(second, policy)


def _describe(folder: Path, policy: Policy) -> list[Any] | None:
    """Return everything but the weights that an engine's answers depend on; None if the tokenizer has no fast form."""
    from transformers import AutoConfig

    tokenizer = load_tokenizer(folder, policy)
    if not tokenizer.is_fast:
        return None
    settings = AutoConfig.from_pretrained(folder).to_dict()
    generation = folder / "generation_config.json"
    configs = [settings, read_json(generation) if generation.exists() else {}]
    kept = [{key: value for key, value in each.items() if key not in _OF_NO_EFFECT} for each in configs]
    return [kept, tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, sorted(tokenizer.all_special_ids)]
