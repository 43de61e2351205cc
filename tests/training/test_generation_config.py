"""A model's generation config is exported as it was, also where transformers would refuse to save it."""

from __future__ import annotations

import json

from tiny_policy import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from medssr_dist.training.weights.generation_config import copy_generation_config, keep_token_ids_only

SETTINGS = {"eos_token_id": [2, 5], "temperature": 0.1, "top_k": 2, "repetition_penalty": 1.8, "max_new_tokens": 5}


def test_it_is_exported_as_it_was(tmp_path):
    source, export = tmp_path / "source", tmp_path / "export"
    tiny_llama(len(tiny_tokenizer())).save_pretrained(source)
    (source / "generation_config.json").write_text(json.dumps(SETTINGS))
    model = AutoModelForCausalLM.from_pretrained(source)
    keep_token_ids_only(model)
    model.save_pretrained(export)
    saved = json.loads((export / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 5] and "temperature" not in saved
    copy_generation_config(source, export)
    assert json.loads((export / "generation_config.json").read_text()) == SETTINGS


def test_a_model_without_one_keeps_its_tokens(tmp_path):
    source, export = tmp_path / "source", tmp_path / "export"
    tiny_llama(len(tiny_tokenizer())).save_pretrained(source)
    (source / "generation_config.json").unlink()
    model = AutoModelForCausalLM.from_pretrained(source)
    keep_token_ids_only(model)
    model.save_pretrained(export)
    copy_generation_config(source, export)
    assert json.loads((export / "generation_config.json").read_text())["eos_token_id"] == 2
