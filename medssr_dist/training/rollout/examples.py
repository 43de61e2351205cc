"""Questions with answers -> the prompts OpenRLHF draws, in an order that survives a restart."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from medssr_dist.data.answers import render_prompt
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run.stream import ALL_TAKEN


@dataclass(frozen=True)
class Example:
    """One question to train on and the answer that earns the reward.

    confidence: least share of valid votes for the answer, where it is a pseudo-label; None where a human gave it.
    """

    question: Question
    answer: str
    confidence: float | None = None


def of_label(label: Label) -> Example:
    """A pseudo-labelled example."""
    return Example(label.question, label.answer, label.confidence_valid[0])


def from_labels(labels: Iterable[Label]) -> Iterator[Example]:
    """Pseudo-labelled examples, in ledger order."""
    return map(of_label, labels)


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
    whose prompt leaves no room for an answer are skipped.

    The state, which the trainer's checkpoint holds, is the place in the stream of examples after the last prompt
    given: a restart goes on from there, and reads nothing of what came before.

    Args:
        examples: examples(start) gives (place after it, Example) in order, from place `start` on, 0 being the
            beginning; it may wait for examples that are still to come.
        on_taken: told of the first pass how many examples have been taken, and ALL_TAKEN once no more will be.

    Attributes:
        taken: prompts given.
        skipped: examples whose prompt is too long.
        waited_s: time spent on getting examples.
    """

    def __init__(
        self,
        examples: Callable[[int], Iterable[tuple[int, Example]]],
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
        self._total = steps * prompts_per_step  # 0: not known before the end of the first pass
        self._on_taken = on_taken
        self._place = 0
        self._first_pass = True
        self._drawn: Iterator[tuple[str, str]] | None = None  # the pass that `draw` is in
        self.taken = 0
        self.skipped = 0
        self.waited_s = 0.0

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[tuple[list, list, list, list]]:
        self._tell()
        while not self._complete:
            for prompt, label in self._one_pass():
                yield ["medssr"], [prompt], [label], [None]
                if self._complete:
                    return

    def draw(self, wrap: bool) -> tuple[str, str] | None:
        """The next prompt and its label, for one who counts steps itself: `steps` is 0, and `finish` is called.

        Args:
            wrap: begin again after the last example; else None once the first pass is over.
        """
        while wrap or self._first_pass:
            if self._drawn is None:
                self._tell()
                self._drawn = self._one_pass()
            if item := next(self._drawn, None):
                return item
            self._drawn = None
        return None

    def finish(self) -> None:
        """No more will be drawn."""
        self._on_taken(ALL_TAKEN)

    def _one_pass(self) -> Iterator[tuple[str, str]]:
        """(prompt, label) from the place reached to the end of the examples."""
        for place, example in self._waited_for(self._examples(self._place)):
            self._place = place
            item = self._render(example)
            self.taken += item is not None
            self.skipped += item is None and self._first_pass
            self._tell()
            if item:
                yield item
        if not self.taken:
            raise InputError("no example to train on: every label was rejected, or every prompt is too long")
        self._total = self._total or -(-self.taken // self._prompts_per_step) * self._prompts_per_step
        self._place, self._first_pass = 0, False

    def state_dict(self) -> dict:
        return {
            "place": self._place,
            "first_pass": self._first_pass,
            "taken": self.taken,
            "skipped": self.skipped,
            "total": self._total,
        }

    def load_state_dict(self, state: dict) -> None:
        self._drawn = None
        self._place, self._first_pass = state["place"], state["first_pass"]
        self.taken, self.skipped, self._total = state["taken"], state["skipped"], state["total"]

    @property
    def _complete(self) -> bool:
        return 0 < self._total == self.taken

    def _tell(self) -> None:
        """Whoever waits for room need not once no more will be taken."""
        if self._complete:
            self._on_taken(ALL_TAKEN)
        elif self._first_pass:
            self._on_taken(self.taken + self.skipped)

    def _waited_for(self, examples: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
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
