"""Questions with answers become the prompts that the sampler draws, in an order that survives a restart."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from medssr_dist.data.answers import render_prompt
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.stream import ALL_TAKEN


@dataclass(frozen=True)
class Example:
    """One question to train on, and the answer that earns the reward.

    confidence: lower bound of the share of valid votes for a pseudo-label; None for an answer given by a human.
    """

    question: Question
    answer: str
    confidence: float | None = None


def example_of_label(label: Label) -> Example:
    """Make a pseudo-labelled example."""
    return Example(label.question, label.answer, label.confidence_valid[0])


def examples_of_labels(labels: Iterable[Label]) -> Iterator[Example]:
    """Make pseudo-labelled examples, in ledger order."""
    return map(example_of_label, labels)


def examples_of_questions(questions: Iterable[Question]) -> list[Example]:
    """Make human-annotated examples. Raises InputError for a question without an answer."""
    examples = []
    for question in questions:
        if question.truth is None:
            raise InputError(f"{question.source} item {question.source_id or question.id} has no answer to train on")
        examples.append(Example(question, question.truth))
    return examples


def shuffle(examples: list[Example], random_seed: int) -> list[Example]:
    """Return the same examples in a seeded order."""
    return random.Random(random_seed).sample(examples, len(examples))


class PromptLoader:
    """Draws prompts, one at a time, and skips examples whose prompt leaves no room for an answer.

    The state is the place in the stream of examples after the last prompt drawn. It is saved with each checkpoint; a
    restart resumes from there and reads nothing before it.

    Args:
        examples: examples(start) yields (place after it, Example) in order, from place `start` on, 0 being the
            beginning; it may wait for examples that do not exist yet.
        on_taken: called during the first pass with the number of examples taken so far, and with ALL_TAKEN once no more
            will be taken.

    Attributes:
        taken: prompts drawn so far.
        skipped: examples whose prompt is too long.
        waited_s: seconds spent waiting for examples.
    """

    def __init__(
        self,
        examples: Callable[[int], Iterable[tuple[int, Example]]],
        tokenizer,
        max_prompt_tokens: int,
        on_taken: Callable[[int], None] = lambda taken: None,
    ):
        self._examples = examples
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._on_taken = on_taken
        self._place = 0
        self._first_pass = True
        self._pass: Iterator[tuple[str, str]] | None = None
        self.taken = 0
        self.skipped = 0
        self.waited_s = 0.0

    def draw(self, wrap: bool) -> tuple[str, str] | None:
        """Return the next prompt and its label.

        Args:
            wrap: start again after the last example; otherwise return None once the first pass is over.

        Raises:
            InputError: there is no example, or every prompt is too long.
        """
        while wrap or self._first_pass:
            if self._pass is None:
                self._report_taken()
                self._pass = self._one_pass()
            if item := next(self._pass, None):
                return item
            self._pass = None
        return None

    def finish(self) -> None:
        """No more prompts will be drawn."""
        self._on_taken(ALL_TAKEN)

    def _one_pass(self) -> Iterator[tuple[str, str]]:
        """Yield (prompt, label) from the current place to the end of the examples."""
        for place, example in self._timed(self._examples(self._place)):
            self._place = place
            item = self._render(example)
            self.taken += item is not None
            self.skipped += item is None and self._first_pass
            self._report_taken()
            if item:
                yield item
        if not self.taken:
            raise InputError("no example to train on: every label was rejected, or every prompt is too long")
        self._place, self._first_pass = 0, False

    def state_dict(self) -> dict[str, int]:
        return {
            "place": self._place,
            "first_pass": self._first_pass,
            "taken": self.taken,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._pass = None
        self._place, self._first_pass = state["place"], bool(state["first_pass"])
        self.taken, self.skipped = state["taken"], state["skipped"]

    def _report_taken(self) -> None:
        if self._first_pass:
            self._on_taken(self.taken + self.skipped)

    def _timed(self, examples: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
        """Yield the examples; the time spent waiting for them is added to `waited_s`."""
        iterator = iter(examples)
        while True:
            since = time.monotonic()
            found = next(iterator, None)
            self.waited_s += time.monotonic() - since
            if found is None:
                return
            yield found

    def _render(self, example: Example) -> tuple[str, str] | None:
        prompt = render_prompt(self._tokenizer, example.question)
        if len(self._tokenizer(prompt, add_special_tokens=False)["input_ids"]) > self._max_prompt_tokens:
            return None
        label = {
            "answer": example.answer,
            "options": example.question.options,
            "id": example.question.id,
            "confidence": example.confidence,
        }
        return prompt, json.dumps(label)
