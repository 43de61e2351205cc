"""Questions with answers -> the prompts OpenRLHF draws, in an order that survives a restart."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from medssr_dist.answers import chat_prompt
from medssr_dist.errors import InputError
from medssr_dist.records import Label, Question


@dataclass(frozen=True)
class Example:
    """One question to train on and the answer that earns the reward."""

    question: Question
    answer: str


def from_labels(labels: Iterable[Label]) -> Iterator[Example]:
    """Pseudo-labelled examples, in ledger order."""
    return (Example(label.question, label.answer) for label in labels)


def from_questions(questions: Iterable[Question]) -> list[Example]:
    """Human-annotated examples. Raises InputError for a question without an answer."""
    examples = []
    for question in questions:
        if question.truth is None:
            raise InputError(f"{question.source} item {question.source_id or question.id} has no answer to train on")
        examples.append(Example(question, question.truth))
    return examples


def shuffled(examples: list[Example], random_seed: int) -> list[Example]:
    """The same examples in a seeded order."""
    return random.Random(random_seed).sample(examples, len(examples))


class PromptLoader:
    """What OpenRLHF's sample generator iterates: (sources, prompts, labels, images), one prompt each.

    `steps` = 0 is one pass: the last step is filled up from the beginning, so each example is
    trained on at least once. Otherwise the examples are repeated until the steps are done. Examples
    whose prompt leaves no room for an answer are skipped and counted in `skipped`.

    Args:
        examples: called once; may wait for examples that are still to come.
        on_taken: told how many examples have been taken from `examples`.
    """

    def __init__(
        self,
        examples: Callable[[], Iterable[Example]],
        tokenizer,
        max_prompt_tokens: int,
        prompts_per_step: int,
        steps: int,
        on_taken: Callable[[int], None] = lambda taken: None,
    ):
        self._examples = examples
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._prompts_per_step = prompts_per_step
        self._total = steps * prompts_per_step
        self._on_taken = on_taken
        self.taken = 0
        self.skipped = 0

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[tuple[list, list, list, list]]:
        start = self.taken
        for position, (prompt, label) in enumerate(self._in_order()):
            if position < start:
                continue
            self.taken = position + 1
            yield ["medssr"], [prompt], [label], [None]

    def state_dict(self) -> dict:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict) -> None:
        self.taken = state["taken"]

    def _in_order(self) -> Iterator[tuple[str, str]]:
        seen, start = [], self.taken
        for count, example in enumerate(self._examples(), start=1):
            if count >= start:  # a resumed run took those before already
                self._on_taken(count)
            if (item := self._render(example)) is None:
                self.skipped += 1
                continue
            seen.append(item)
            yield item
            if len(seen) == self._total:
                self._on_taken(sys.maxsize)  # no more will be taken: whoever waits for room need not
                return
        if not seen:
            raise InputError("no example to train on: every label was rejected, or every prompt is too long")
        total = self._total or -(-len(seen) // self._prompts_per_step) * self._prompts_per_step
        for position in range(len(seen), total):
            yield seen[position % len(seen)]

    def _render(self, example: Example) -> tuple[str, str] | None:
        prompt = chat_prompt(self._tokenizer, example.question)
        if len(self._tokenizer(prompt, add_special_tokens=False)["input_ids"]) > self._max_prompt_tokens:
            return None
        label = {"answer": example.answer, "options": example.question.options, "id": example.question.id}
        return prompt, json.dumps(label)
