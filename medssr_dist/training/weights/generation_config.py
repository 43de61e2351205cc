"""The model's generation_config.json on its way through training: exported as it was, whatever it holds.

transformers refuses to save a generation config that it finds inconsistent, for instance a temperature without
`do_sample`, and would so end a finished stage without its model. vLLM reads the stop tokens from this file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from transformers import GenerationConfig

_FILE = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def keep_token_ids_only(model: nn.Module) -> None:
    """Take everything but the special tokens out of the model's generation config, so that it can be saved."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = plain.generation_config
    plain.generation_config = GenerationConfig(**{name: getattr(found, name, None) for name in _TOKENS})


def copy_generation_config(source: Path, folder: Path) -> None:
    """Replace the generation config of the export in `folder` by that of the model that training began with, if any."""
    if (source / _FILE).exists():
        shutil.copyfile(source / _FILE, folder / _FILE)
