"""An adapter that is merged is the adapter as it was trained, or it is refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from medssr_dist.errors import InputError
from medssr_dist.runtime.merged_adapter import merge_adapter, read_base_name

TOKENS = torch.arange(4, 24)[None]


@pytest.fixture
def make(tmp_path):
    """make(tied, **settings of LoRA) saves a base model and an adapter; returns both and the adapted model."""
    from tiny_policy import tiny_tokenizer

    def save(tied=False, **lora):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        base = tmp_path / "base"
        config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | lora
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight.data, std=0.5)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", base, adapted

    return save


FORMS = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "output layer saved": {"modules_to_save": ["lm_head"]},
    "LoRA of the output layer": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA of both": {"target_modules": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_merged_adapter_is_the_adapted_model(make, tmp_path, form, tied):
    adapter, base, adapted = make(tied, **FORMS[form])
    merged = AutoModelForCausalLM.from_pretrained(merge_adapter(adapter, base, tmp_path / "merged"))
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, adapted(TOKENS).logits, rtol=1e-3, atol=1e-3)


def rename(weights):
    return {name.replace("q_proj", "query"): weight for name, weight in weights.items()}


def spoil(weights):
    name = next(name for name in weights if "lora_B" in name)
    return weights | {name: weights[name].clone().fill_(float("nan"))}


def widen(weights):
    return {name: torch.cat([weight, weight]) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "does not fit .*: 4 of its weights are of other layers, such as .*q_proj"),
        (spoil, "holds NaN or infinity in .*lora_B"),
        (widen, "cannot be merged into .*size mismatch"),
    ],
)
def test_weights_that_do_not_fit_are_refused(make, tmp_path, change, words):
    adapter, base, _ = make()
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=words):
        merge_adapter(adapter, base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_damaged_files_are_named(make, tmp_path):
    adapter, base, _ = make()
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot be merged into .*incomplete metadata"):
        merge_adapter(adapter, base, tmp_path / "merged")
    file.unlink()
    with pytest.raises(InputError, match="has no weights .adapter_model.safetensors"):
        merge_adapter(adapter, base, tmp_path / "merged")
    for text in ("[]", json.dumps({"base_model_name_or_path": None})):
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match="does not name its model"):
            read_base_name(adapter)
