"""A LoRA adapter as a plain model: merged once into its base model, in the cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.runtime.failures import describe_damage

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, without the model that it belongs to."""
    return (folder / ADAPTER_FILE).exists() and not (folder / "config.json").exists()


def read_base_name(folder: Path) -> str:
    """Return the directory or Hugging Face id of the model that an adapter belongs to.

    Raises:
        InputError: the adapter does not name it.
    """
    settings = read_json(folder / ADAPTER_FILE)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
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
        InputError: peft cannot load the adapter into this model, or it would not be the adapter as it was trained.
    """
    if (target / "config.json").exists():
        return target
    if not any(adapter.glob("adapter_model.*")):
        raise InputError(f"the adapter {adapter} has no weights (adapter_model.safetensors); copy it again")
    import shutil

    from peft import PeftModel
    from peft.utils import load_peft_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        stored = load_peft_weights(str(adapter), device="cpu")
        if any(_changes_embeddings(name) for name in stored):
            _untie(model)
        adapted = PeftModel.from_pretrained(model, str(adapter))
        _refuse_unfit_weights(adapter, base, adapted, stored)
        merged = adapted.merge_and_unload()
    except InputError:
        raise
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


def _changes_embeddings(name: str) -> bool:
    return "embed" in name or "lm_head" in name


def _untie(model: PreTrainedModel) -> None:
    """Give a model whose output layer is its embedding a layer of its own: an adapter changes one of them alone."""
    import torch

    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and isinstance(head, torch.nn.Linear):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _refuse_unfit_weights(adapter: Path, base: Path, adapted: PeftModel, stored: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not finite, and names that the model lacks: peft would leave them out with a warning."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    strange = [name for name in stored if name not in wanted and not _changes_embeddings(name)]
    if unfit := sorted([*(wanted - set(stored)), *strange]):
        raise InputError(
            f"the adapter {adapter} does not fit {base}: {len(unfit)} of its weights are of other layers, such as "
            f"{unfit[0]}; correct base_model_name_or_path in {ADAPTER_FILE}"
        )
    if bad := [name for name, weight in stored.items() if not weight.isfinite().all()]:
        raise InputError(
            f"the adapter {adapter} holds NaN or infinity in {bad[0]}; train it again, or use another step"
        )
