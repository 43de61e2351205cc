"""A LoRA adapter as a plain model: merged once into its base model, in the cache."""

from __future__ import annotations

import os
from pathlib import Path

from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.runtime.failures import describe_damage

ADAPTER_FILE = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, without the model that it belongs to."""
    return (folder / ADAPTER_FILE).exists() and not (folder / "config.json").exists()


def read_base_name(folder: Path) -> str:
    """Return the directory or Hugging Face id of the model that an adapter belongs to.

    Raises:
        InputError: the adapter does not name it.
    """
    base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / ADAPTER_FILE} does not name its model; set base_model_name_or_path in it")
    return base


def find_merged(adapter: Path, adapter_hash: str, base_hash: str) -> Path:
    """Return where the merged model of an adapter is or will be in the cache."""
    return make_cache_dir() / "models" / f"{adapter.name}-{hash_content([adapter_hash, base_hash])}"


def merge_adapter(adapter: Path, base: Path, target: Path) -> Path:
    """Write the merged model to `target`, if it is not there yet, and return `target`.

    Args:
        base: directory of the model that the adapter belongs to.

    Raises:
        InputError: peft cannot load the adapter into this model.
    """
    if (target / "config.json").exists():
        return target
    import shutil

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except Exception as error:  # of any kind: peft and transformers pass on what their readers raise
        if damage := describe_damage(error):
            raise InputError(f"the adapter {adapter} cannot be merged into {base} ({damage})") from None
        raise
    has_tokenizer = (adapter / "tokenizer_config.json").exists()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    merged.save_pretrained(partial)
    AutoTokenizer.from_pretrained(adapter if has_tokenizer else base).save_pretrained(partial)
    if target.exists():  # another process has merged it meanwhile
        shutil.rmtree(partial)
    else:
        os.replace(partial, target)
    return target
