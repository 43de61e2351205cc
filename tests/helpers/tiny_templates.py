"""Tiny models' tokenizers with each kind of chat template, real byte-level ones that spell any text."""

from __future__ import annotations

from pathlib import Path

CHAT = (
    "{{ bos_token }}{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% elif turn.role == 'user' %}"
    "[INST] {{ turn.content }} [/INST]{% else %} {{ turn.content }}<|im_end|>{% endif %}{% endfor %}"
)
THINKING = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DATED = "Today Date: {{ strftime_now('%d %b %Y') }}\n" + CHAT
DROPS_SYSTEM = CHAT.replace("messages %}", "messages if turn.role != 'system' %}")
TEMPLATES = {"chat": CHAT, "no_system": NO_SYSTEM, "thinking": THINKING, "none": None}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>"]
MARKUP = ["<think>", "</think>"]  # added, but not special, as in Qwen3


def build_tokenizer(template: str | None, adds_bos: bool = True):
    """A byte-level tokenizer of 256 bytes and the added tokens; it puts <s> in front of a text if `adds_bos`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in MARKUP])
    if adds_bos:
        start = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", start)])
    end = "</s>" if template is None else "<|im_end|>"
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, pad_token="</s>")
    made.chat_template = template
    return made


def write_tokenizer(folder: Path, kind: str) -> Path:
    """Save the tokenizer of this kind of template, with a config.json, as a model directory without weights."""
    import json

    tokenizer = build_tokenizer(TEMPLATES[kind])
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    return folder
