"""Shared by the tests of the streams: questions, labels, a tokenizer of words, and a wait with a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

from medssr_dist.data.records import Label, Question
from medssr_dist.training.rollout.examples import DrawnPrompt, Example, PromptLoader

TIMEOUT_S = 60


def never() -> bool:
    return False


class Tokenizer:
    """Splits a text into one token for each word."""

    chat_template = None

    def __call__(self, text, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": text.split()}


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
