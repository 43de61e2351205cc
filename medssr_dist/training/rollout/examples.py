"""Questions with answers become the prompts that the sampler draws; after a restart the order continues."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.stream import ALL_TAKEN


@dataclass(frozen=True)
class Example:
    """One question to train on, and the answer that earns the reward.

    confidence: lower bound of the share of valid votes for a pseudo-label; None for a human answer. label: that the
    pseudo-label comes from.

    Example: Example(Question.make("Which?", ["yes", "no"], source="medqa"), "B", confidence=0.71)
    """

    question: Question
    answer: str
    confidence: float | None = None
    label: Label | None = None


class DrawnPrompt(NamedTuple):
    """A prompt for the rollout engines, and its label for the reward.

    text: the rendered prompt. ids: its tokens. label: JSON object with `answer`, `options`, `id` and `confidence` of
    the example. votes: the pseudo-label with its counts of votes; None for a human answer. place: of the example.
    """

    text: str
    ids: list[int]
    label: str
    votes: Label | None = None
    place: int = 0


def make_labeled_example(label: Label) -> Example:
    """Return the example of a question with its pseudo-label."""
    return Example(label.question, label.answer, label.confidence_valid[0], label)


def make_labeled_examples(labels: Iterable[Label]) -> Iterator[Example]:
    """Yield the examples of questions with pseudo-labels, in the order of the ledger."""
    return map(make_labeled_example, labels)


def make_annotated_examples(questions: Iterable[Question]) -> list[Example]:
    """Return the examples of human-annotated questions. Raises InputError for a question without an answer."""
    examples = []
    for question in questions:
        if question.truth is None:
            raise InputError(f"{question.source} item {question.source_id or question.id} has no answer to train on")
        examples.append(Example(question, question.truth))
    return examples


def shuffle(examples: list[Example], random_seed: int) -> list[Example]:
    """Return the same examples in a random order that depends on the seed alone."""
    return random.Random(random_seed).sample(examples, len(examples))


class PromptLoader:
    """Draws prompts, one at a time, and skips examples whose prompt leaves no room for an answer.

    Its state is the place in the stream of examples after the last prompt drawn. The state is saved with each
    checkpoint. After a restart the loader resumes at this place and does not read earlier examples.

    Args:
        examples: examples(start) yields (place after the example, Example) in order, from place `start` on; 0 is the
            beginning. It may wait for examples that do not exist yet.
        prompts: makes the policy's prompts.
        max_prompt_tokens: examples with longer prompts are skipped.
        on_taken: called during the first pass with the number of examples taken so far, and with ALL_TAKEN when no
            more will be taken.

    Attributes:
        taken: prompts drawn so far.
        skipped: examples whose prompt is too long.
        waited_s: seconds spent waiting for examples.
    """

    def __init__(
        self,
        examples: Callable[[int], Iterable[tuple[int, Example]]],
        prompts: PromptRenderer,
        max_prompt_tokens: int,
        on_taken: Callable[[int], None] = lambda taken: None,
    ):
        self._examples = examples
        self._prompts = prompts
        self._max_prompt_tokens = max_prompt_tokens
        self._on_taken = on_taken
        self._place = 0
        self._first_pass, self._finished = True, False
        self._pass: Iterator[DrawnPrompt] | None = None
        self._relabels: dict[str, Label] = {}  # question -> its newest label, if the policy has voted again
        self.taken = 0
        self.skipped = 0
        self.waited_s = 0.0

    def draw(self, wrap: bool) -> DrawnPrompt | None:
        """Return the next prompt; None after the first pass, if `wrap` is false.

        Args:
            wrap: start again from the beginning after the last example.

        Raises:
            InputError: there is no example, or every prompt is too long.
        """
        while wrap or self._first_pass:
            if self._pass is None:
                self._report_taken()
                self._pass = self._one_pass()
            if prompt := next(self._pass, None):
                return prompt
            self._pass = None
        return None

    def relabel(self, labels: Iterable[Label]) -> None:
        """Use these labels of their questions from now on; a question whose label is not kept is left out."""
        self._relabels |= {label.question.id: label for label in labels}

    def look_ahead(self, count: int, wrap: bool) -> list[Label]:
        """Return the labels, as they are now, of the next `count` questions with a prompt that fits; each once.

        Args:
            wrap: look on from the beginning after the last question. There may be fewer than `count` in any case.
        """
        found: dict[str, Label] = {}
        for start in (self._place, 0) if wrap else (self._place,):
            for _, example in self._examples(start):
                if example.label is not None and example.question.id not in found and self._render(example):
                    found[example.question.id] = self._relabels.get(example.question.id, example.label)
                if len(found) == count:
                    return list(found.values())
        return list(found.values())

    def finish(self) -> None:
        """Report that no more prompts will be drawn; a batch that is being made meanwhile reports nothing after it."""
        self._finished = True
        self._on_taken(ALL_TAKEN)

    def _one_pass(self) -> Iterator[DrawnPrompt]:
        """Yield prompts from the current place to the end of the examples."""
        for place, example in self._measure_waiting(self._examples(self._place)):
            self._place = place
            if label := self._relabels.get(example.question.id):
                if not label.kept:
                    continue
                example = make_labeled_example(label)
            prompt = self._render(example)
            self.taken += prompt is not None
            self.skipped += prompt is None and self._first_pass
            self._report_taken()
            if prompt:
                yield prompt._replace(place=place)
        if not self.taken:
            raise InputError("no example to train on: every label was rejected, or every prompt is too long")
        self._place, self._first_pass = 0, False

    def state_dict(self) -> dict[str, int]:
        """Return the state as plain values, for a checkpoint."""
        return {
            "place": self._place,
            "first_pass": self._first_pass,
            "taken": self.taken,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a state returned by `state_dict`."""
        self._pass = None
        self._place, self._first_pass = state["place"], bool(state["first_pass"])
        self.taken, self.skipped = state["taken"], state["skipped"]

    def _report_taken(self) -> None:
        if self._first_pass and not self._finished:
            self._on_taken(self.taken + self.skipped)

    def _measure_waiting(self, examples: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
        """Yield the examples, and add the time spent waiting for each to `waited_s`."""
        iterator = iter(examples)
        while True:
            since = time.monotonic()
            found = next(iterator, None)
            self.waited_s += time.monotonic() - since
            if found is None:
                return
            yield found

    def _render(self, example: Example) -> DrawnPrompt | None:
        prompt = render_example(self._prompts, example)
        return prompt if len(prompt.ids) <= self._max_prompt_tokens else None


def render_example(prompts: PromptRenderer, example: Example) -> DrawnPrompt:
    """Return the policy's prompt for an example, with the label that its answers are graded by."""
    prompt = prompts.render(example.question)
    label = {
        "answer": example.answer,
        "options": example.question.options,
        "id": example.question.id,
        "confidence": example.confidence,
    }
    return DrawnPrompt(prompt.text, list(prompt.ids), json.dumps(label), example.label)
