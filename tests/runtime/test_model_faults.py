"""Faults of a model's files that would end a run late are found before it starts."""

from __future__ import annotations

import json

import pytest
import torch
from config_builder import make_config
from safetensors.torch import save_file
from tiny_policy import tiny_tokenizer

from medssr_dist import cli
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.runtime.model_files import read_model_facts, read_stored_weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path):
    """model(rows=64, weights={}, tokenizer=..., **config) writes a model directory without layers."""

    def write(rows=64, weights=None, tokenizer=None, **settings):
        folder = tmp_path / "model"
        (tokenizer or tiny_tokenizer()).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(LLAMA | settings))
        stored = {"model.embed_tokens.weight": torch.zeros(rows, 4)} | (weights or {})
        save_file(stored, folder / "model.safetensors")
        return folder

    return write


def configured(folder, max_model_len=512, training=None, **sections):
    limits = {"stage1": {"max_new_tokens": 8}, "stage2": {"enabled": False, "max_new_tokens": 8}}
    return make_config(
        policy={"model": str(folder), "max_model_len": max_model_len, "prompt": "direct"},
        training=limits | (training or {}),
        voting={"max_tokens": 8} | sections.pop("voting", {}),
        evaluation={"max_tokens": 8},
        **sections,
    )


def refused(folder, *args, **settings):
    with pytest.raises(InputError) as caught:
        refuse_unfit_model(configured(folder, *args, **settings), folder)
    return str(caught.value)


def test_a_sound_model_is_used(model):
    folder = model()
    refuse_unfit_model(configured(folder), folder)


# --- positions


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}}, 512),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}},
            1024,
        ),
        (
            {"rope_parameters": {"full": {"rope_type": "linear", "factor": 2}, "sliding": {"rope_type": "default"}}},
            1024,
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, 512),
        ({"max_position_embeddings": None, "n_positions": 300}, 300),
        ({"max_position_embeddings": None}, None),
        ({"text_config": {"max_position_embeddings": 700}}, 700),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": None}, 2048),
    ],
)
def test_positions_are_those_of_vllm(model, settings, positions):
    assert read_model_facts(model(**settings)).positions == positions


def test_a_context_beyond_the_positions_is_refused(model):
    message = refused(model(), 4096)
    assert "policy.max_model_len = 4096" in message and "set policy.max_model_len=512 or less" in message


def test_a_scaled_context_is_used(model):
    folder = model(rope_scaling={"rope_type": "linear", "factor": 8.0})
    refuse_unfit_model(configured(folder, 4096), folder)


# --- tensor parallelism


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sizes_that_divide_the_heads_are_used(model, size):
    folder = model()
    refuse_unfit_model(configured(folder, voting={"tensor_parallel_size": size}), folder)


@pytest.mark.parametrize(("size", "heads", "kv_heads", "fitting"), [(3, 8, 2, 2), (16, 8, 2, 8), (4, 12, 6, 3)])
def test_sizes_that_do_not_are_refused(model, size, heads, kv_heads, fitting):
    folder = model(num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert f"voting.tensor_parallel_size={fitting}" in refused(folder, voting={"tensor_parallel_size": size})
    assert f"training.tensor_parallel_size={fitting}" in refused(folder, training={"tensor_parallel_size": size})


@pytest.mark.parametrize("name", ["intermediate_size", "moe_intermediate_size"])
def test_sizes_that_do_not_divide_the_mlp_are_refused(model, name):
    message = refused(model(**{name: 100}), voting={"tensor_parallel_size": 8})
    assert "inner size of 100" in message and "voting.tensor_parallel_size=4" in message


# --- config files


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", json.dumps(LLAMA | {"max_position_embeddings": "512"})),
        ("config.json", json.dumps(LLAMA | {"num_attention_heads": "8"})),
        ("config.json", json.dumps(LLAMA | {"max_position_embeddings": 512.5})),
        ("config.json", json.dumps(LLAMA | {"rope_scaling": [4]})),
        ("config.json", json.dumps(LLAMA | {"rope_scaling": {"type": "linear", "factor": "4"}})),
        ("config.json", "[]"),
        ("config.json", '{"model_type": '),
        ("generation_config.json", "{"),
        ("generation_config.json", ""),
        ("generation_config.json", "[]"),
        ("generation_config.json", "\ufeff{}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_file_is_named(model, file, text):
    folder = model()
    (folder / file).unlink(missing_ok=True)
    if text is not None:
        (folder / file).write_text(text)
    assert file in refused(folder)


def test_settings_that_are_only_odd_are_no_fault(model):
    odd = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [1, 2], "num_beams": 4, "banana": 1}
    folder = model()
    (folder / "generation_config.json").write_text(json.dumps(odd))
    refuse_unfit_model(configured(folder), folder)


# --- embedding and tokenizer


def test_tokens_without_a_row_are_refused(model):
    message = refused(model(rows=10))
    assert "10 rows" in message and "resize the embedding" in message


def test_added_words_without_rows_are_refused(model):
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["eosinophilia"])
    assert f"'eosinophilia' with id {rows}" in refused(model(rows=rows, tokenizer=tokenizer))


def test_a_special_token_of_no_prompt_needs_no_row(model):
    """As Gemma 3's image token has none in the model of text alone."""
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    folder = model(rows=rows, tokenizer=tokenizer)
    refuse_unfit_model(configured(folder), folder)


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
def test_end_and_padding_need_a_row(model, role):
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({role: "<new>"})
    assert "'<new>'" in refused(model(rows=rows, tokenizer=tokenizer))


def test_a_tokenizer_without_end_token_is_refused(model):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert "no end token" in refused(model(tokenizer=tokenizer))


def test_a_larger_embedding_is_used(model):
    folder = model(rows=4096)
    refuse_unfit_model(configured(folder), folder)


# --- kind, dtype, output


@pytest.mark.parametrize("kind", ["t5", "no-such-model", ""])
def test_a_model_that_writes_no_text_is_refused(model, kind):
    assert "is no language model" in refused(model(model_type=kind))


def test_float16_is_refused_where_it_overflows(model):
    folder = model(model_type="gemma2")
    config = configured(folder)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"dtype": "float16"})})
    with pytest.raises(InputError, match="policy.dtype=bfloat16"):
        refuse_unfit_model(config, folder)


@pytest.mark.parametrize(
    ("settings", "weights", "told"),
    [
        ({"final_logit_softcapping": 30.0}, {}, "final_logit_softcapping"),
        ({"logit_scale": 0.0625}, {}, "logit_scale"),
        ({}, {"lm_head.bias": torch.zeros(64)}, "an output bias"),
        ({"quantization_config": {"quant_method": "awq"}}, {}, "quantized (awq)"),
    ],
)
def test_what_cannot_be_trained_is_refused_where_it_is_trained(model, settings, weights, told):
    folder = model(weights=weights, **settings)
    assert told in refused(folder)
    voting_alone = configured(folder, training={"stage1": {"enabled": False, "max_new_tokens": 8}})
    refuse_unfit_model(voting_alone, folder)


def test_neutral_settings_of_the_output_are_no_fault(model):
    folder = model(logit_scale=1.0, final_logit_softcapping=None)
    refuse_unfit_model(configured(folder), folder)


# --- weight files


def test_a_cut_weight_file_is_refused(model):
    file = model() / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "bytes; copy or download the model again" in refused(file.parent)
    file.write_bytes(whole[:40])
    with pytest.raises(InputError, match="no whole safetensors file"):
        read_stored_weights(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="no whole safetensors file"):
        read_stored_weights(file)


@pytest.mark.parametrize(
    "header", ["[]", "5", '{"w": 5}', '{"w": []}', '{"w": {"shape": 1, "data_offsets": [0, 1]}}', "[" * 100_000]
)
def test_a_weight_file_with_a_wrong_header_is_refused(tmp_path, header):
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(InputError, match="no whole safetensors file"):
        read_stored_weights(file)


def test_absent_weight_files_are_named(model):
    folder = model()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of its files of weights, such as model-00002-of-00002.safetensors" in refused(folder)
    (folder / "model-00002-of-00002.safetensors").symlink_to(folder / "gone")
    with pytest.raises(InputError, match="00002.safetensors cannot be read .No such file"):
        refuse_unfit_model(configured(folder), folder)
    for file in folder.glob("model*"):
        file.unlink()
    assert r"such as *.safetensors" in refused(folder)


# --- where it is told


@pytest.mark.parametrize(
    "command", [["run", "--dry-run"], ["vote"], ["train"], ["doctor", "--login", "--step", "vote"]]
)
def test_every_command_tells_it_before_it_starts(model, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    from config_builder import write_config

    tree = configured(model(), 512).model_dump(mode="json")
    sections = {
        "policy": {"model": str(model()), "prompt": "direct", "max_model_len": 4096},
        "training": tree["training"],
    }
    sections["synthesis"] = {"seeds": ["hpo:seeds"], "alpha": 0.0}
    sections["evaluation"] = {"benchmarks": [{"path": "hpo:evaluation", "limit": 4}]}
    file = write_config(tmp_path / "c.yaml", **sections)
    assert cli.main([*command, "--config", str(file), "--run-dir", str(tmp_path / "run")]) == EXIT_BAD_INPUT
    out = capsys.readouterr()
    assert "policy.max_model_len = 4096" in out.out + out.err
    assert not (tmp_path / "run" / "synthesis").exists()
