"""A policy so small that the whole real stack runs on it in a minute or two, and the config that goes with it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

LETTERS = "ABCD"
_WORDS = [f"name_{letter}" for letter in LETTERS] + ["Pick", "the", "letter", "that", "is", "named", ":", ".", "Option"]
_SPECIAL = ["<unk>", "<pad>", "<eos>"]


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data(repo: Path) -> Path:
    """Real public data beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MEDSSR_SHARED_DATA", repo.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set MEDSSR_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A two-layer Llama over whole words that has learnt to answer with one letter, any letter."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = _tiny_tokenizer()
    model = _answers_with_a_letter(_tiny_llama(len(tokenizer)).float(), tokenizer).bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *LETTERS, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )


def _tiny_llama(vocabulary: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
            pad_token_id=1, eos_token_id=2, bos_token_id=None, tie_word_embeddings=False, dtype="bfloat16",
        )
    )  # fmt: skip


def _answers_with_a_letter(model, tokenizer):
    """Supervised steps, in the model's dtype, to a uniformly random letter: the form of an answer, no knowledge."""
    import torch

    from medssr_dist.answers import chat_prompt

    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        texts = [chat_prompt(tokenizer, letter_question(rng.choice(LETTERS), rng.random())) for _ in range(16)]
        ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
        answers = torch.tensor([[tokenizer.convert_tokens_to_ids(rng.choice(LETTERS))] for _ in texts])
        logits = model(torch.cat([ids, answers], dim=1)).logits[:, -2]
        loss = torch.nn.functional.cross_entropy(logits, answers[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def letter_question(letter: str, nonce: float):
    """A question whose stem names the right letter; `nonce` makes its id unique."""
    from medssr_dist.records import Question

    options = [f"Option {letter}" for letter in LETTERS]
    return Question.make(f"name_{letter} is named {nonce}", options, source="letters", truth=letter)


@pytest.fixture
def tiny_config(tmp_path: Path, repo: Path, tiny_model: Path) -> Path:
    """The demo's config on the tiny model, with less of everything."""
    training = {"prompts_per_step": 2, "samples_per_prompt": 4, "micro_batch_size": 4, "max_new_tokens": 1}
    tree = {
        "extends": str(repo / "configs" / "demo_cpu.yaml"),
        "policy": {"model": str(tiny_model), "dtype": "bfloat16", "max_model_len": 256},
        "knowledge": {"corpus": {"path": "hpo:passages", "limit": 40}, "entities": 10},
        "synthesis": {"accepted": 8},
        "voting": {"samples": 5, "threshold": 0.0, "max_tokens": 1},
        "training": {"stage1": training, "stage2": training},
        "evaluation": {"benchmarks": [{"path": "hpo:evaluation", "limit": 4}], "generations": 2, "max_tokens": 1},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def medssr():
    """Run `medssr ARGUMENTS` as a user does; returns the finished process."""

    def run(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "medssr_dist.cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, **options)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    return run
