"""A tiny policy, on which the whole real stack runs in a minute or two, and the questions that it can answer."""

from __future__ import annotations

import random

LETTERS = "ABCD"
_WORDS = [f"name_{letter}" for letter in LETTERS] + ["Pick", "the", "letter", "that", "is", "named", ":", ".", "Option"]
_SPECIAL = ["<unk>", "<pad>", "<eos>"]


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *LETTERS, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )


def tiny_llama(vocabulary: int, tied: bool = False):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=1,
            eos_token_id=2,
            bos_token_id=None,
            tie_word_embeddings=tied,
            dtype="bfloat16",
        )
    )


def teach_answer_format(model, tokenizer):
    """Train the model to answer with a uniformly random letter: the format of an answer, but no knowledge."""
    import torch

    from medssr_dist.data.prompt_forms import load_prompt_form
    from medssr_dist.data.prompt_renderer import PromptRenderer

    prompts = PromptRenderer(tokenizer, load_prompt_form("direct"))
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        texts = [prompts.render(letter_question(rng.choice(LETTERS), rng.random())).text for _ in range(16)]
        ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
        answers = torch.tensor([[tokenizer.convert_tokens_to_ids(rng.choice(LETTERS))] for _ in texts])
        logits = model(torch.cat([ids, answers], dim=1)).logits[:, -2]
        loss = torch.nn.functional.cross_entropy(logits, answers[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def letter_question(letter: str, nonce: float):
    """Return a question whose stem names the right letter; `nonce` makes its id unique."""
    from medssr_dist.data.records import Question

    options = [f"Option {letter}" for letter in LETTERS]
    return Question.make(f"name_{letter} is named {nonce}", options, source="letters", truth=letter)
