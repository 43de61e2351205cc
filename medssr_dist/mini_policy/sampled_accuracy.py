"""Accuracy of the mini policy on questions: of single sampled replies, and of the majority of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medssr_dist.data.answers import extract_answer
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.mini_policy.packing import PROMPT

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 80
_QUESTIONS_AT_ONCE = 32


@dataclass(frozen=True)
class MiniAccuracy:
    """Shares of right answers. `mean`: of all replies; `majority`: of the most frequent letters, a tie by its share."""

    questions: int
    samples: int
    mean: float
    majority: float
    mean_common: float
    mean_rare: float
    majority_common: float
    majority_rare: float
    invalid: float


def sample_replies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    samples: int,
    temperature: float,
) -> list[list[str]]:
    """Sample `samples` replies to each question, of at most MAX_NEW_TOKENS tokens."""
    model.eval()
    renderer = PromptRenderer(tokenizer, load_prompt_form(PROMPT))
    replies: list[list[str]] = []
    for start in range(0, len(questions), _QUESTIONS_AT_ONCE):
        asked = questions[start : start + _QUESTIONS_AT_ONCE]
        prompts = [{"input_ids": list(renderer.render(question).ids)} for question in asked]
        inputs = tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
        tokens_NT = _sample(model, inputs["input_ids"], inputs["attention_mask"], samples, temperature)
        texts = tokenizer.batch_decode(tokens_NT, skip_special_tokens=True)
        replies += [texts[place : place + samples] for place in range(0, len(texts), samples)]
    return replies


@torch.no_grad()
def _sample(
    model: LlamaForCausalLM, tokens_QP: torch.Tensor, mask_QP: torch.Tensor, samples: int, temperature: float
) -> torch.Tensor:
    """Sample after prompts that are padded on the left; each prompt is read once. Returns int64 (prompts*samples, T).

    `model.generate` would read it `samples` times, which takes most of the time for such short replies.
    """
    places_QP = (mask_QP.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=tokens_QP, attention_mask=mask_QP, position_ids=places_QP, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(samples)
    logits_NV = output.logits[:, -1].repeat_interleave(samples, 0)
    mask_NP = mask_QP.repeat_interleave(samples, 0)
    place_N1 = places_QP[:, -1:].repeat_interleave(samples, 0)
    end, pad = int(model.config.eos_token_id or 0), int(model.config.pad_token_id or 0)
    is_open_N1 = torch.ones_like(place_N1, dtype=torch.bool)
    drawn = []
    for _ in range(MAX_NEW_TOKENS):
        token_N1 = torch.multinomial((logits_NV / temperature).softmax(-1), 1)
        token_N1 = torch.where(is_open_N1, token_N1, pad)
        drawn.append(token_N1)
        is_open_N1 &= token_N1 != end
        if not is_open_N1.any():
            break
        place_N1 = place_N1 + 1
        mask_NP = torch.cat([mask_NP, torch.ones_like(place_N1)], 1)
        output = model(input_ids=token_N1, attention_mask=mask_NP, position_ids=place_N1, past_key_values=cache)
        logits_NV = output.logits[:, -1]
    return torch.cat(drawn, 1)


def compute_accuracy(questions: Sequence[Question], replies: Sequence[Sequence[str]]) -> MiniAccuracy:
    """Compute the accuracies of replies to questions with a known answer."""
    means, majorities, invalid = [], [], 0
    for question, texts in zip(questions, replies, strict=True):
        letters = [extract_answer(text, question.options).letter for text in texts]
        invalid += letters.count(None)
        means.append(letters.count(question.truth) / len(letters))
        counts = Counter(letter for letter in letters if letter is not None)
        top = [letter for letter, count in counts.items() if count == max(counts.values())]
        majorities.append((question.truth in top) / len(top) if top else 0.0)
    rare = [question.rare for question in questions]
    return MiniAccuracy(
        questions=len(questions),
        samples=len(replies[0]),
        mean=_average(means),
        majority=_average(majorities),
        mean_common=_average([value for value, is_rare in zip(means, rare, strict=True) if not is_rare]),
        mean_rare=_average([value for value, is_rare in zip(means, rare, strict=True) if is_rare]),
        majority_common=_average([value for value, is_rare in zip(majorities, rare, strict=True) if not is_rare]),
        majority_rare=_average([value for value, is_rare in zip(majorities, rare, strict=True) if is_rare]),
        invalid=invalid / sum(map(len, replies)),
    )


def measure_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    samples: int,
    temperature: float,
) -> MiniAccuracy:
    """Sample replies and compute their accuracies."""
    return compute_accuracy(questions, sample_replies(model, tokenizer, questions, samples, temperature))


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
