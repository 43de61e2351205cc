"""Shared by the tests of the streams: questions, labels, prompts in words, and a wait with a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question
from medssr_dist.training.rollout.examples import DrawnPrompt, Example, PromptLoader

TIMEOUT_S = 60


def never() -> bool:
    return False


class Tokenizer:
    """One token for each word: the length of the word."""

    unk_token_id = eos_token_id = None
    added_tokens_decoder = {}

    def __init__(self, chat_template=None):
        self.chat_template = chat_template

    def get_chat_template(self):
        return self.chat_template

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, turns, tokenize, add_generation_prompt, **kwargs):
        assert (tokenize, add_generation_prompt) == (False, True)
        return " ".join(f"<{turn['role']}> {turn['content']}" for turn in turns) + " <assistant>"


def make_prompts(chat_template=None) -> PromptRenderer:
    """Return what makes prompts of the preset `direct`, in words."""
    return PromptRenderer(Tokenizer(chat_template), load_prompt_form("direct"))


def example(number: int, words: int = 0) -> Example:
    stem = f"Question {number}" + " word" * words
    return Example(Question.make(stem, ["yes", "no"], source="set", truth="B"), "B")


def question(number: int) -> Question:
    return Question.make(f"Question {number}?", ["yes", "no"], source="set")


def label(found: Question, kept: bool = True) -> Label:
    return Label(
        question=found,
        outcome="labeled",
        answer="A",
        counts={"A": 1},
        requested=1,
        taken=1,
        valid=1,
        truncated=0,
        tokens=7,
        confidence_requested=(1.0, 1.0),
        confidence_valid=(1.0, 1.0),
        kept=kept,
        policy="p",
        sampling="s",
    )


def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


def draw_steps(loader: PromptLoader, per_step: int, steps: int = 0) -> Iterator[list[DrawnPrompt]]:
    """Draw the prompts of each step as the Sampler does: one pass, or `steps` steps."""
    while not steps or loader.taken < steps * per_step:
        first = loader.draw(wrap=bool(steps))
        if first is None:
            break
        step = [first, *(loader.draw(wrap=True) for _ in range(per_step - 1))]
        if loader.taken == steps * per_step:
            loader.finish()
        yield step
    loader.finish()
