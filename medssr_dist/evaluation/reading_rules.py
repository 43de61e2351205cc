"""The two protocols, side by side: how each reads an answer, and what it asks in its second pass.

Both work on the same stored generations. What they differ in:

               ours                                    paper (see `paper_rule.py`)
    reading    `data.answers`: thoughts cut off, the   the last "The answer is X" of the whole text
               last final statement
    2nd pass   after "The answer is (", in the same    a further turn that asks for one option; for a prompt
               reply, whose open thoughts are closed   without turns, the same text behind the reply
    letters    of the question's own options           that are right for some question of the file
    deviation  sample                                  population, of rounded percents

How the generations were drawn (prompt, limits, temperature) is set by the config, for both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from medssr_dist.data.answers import extract_answer
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.data.thoughts import find_closing_mark
from medssr_dist.evaluation.paper_rule import SENTENCE, read_paper_answer
from medssr_dist.evaluation.scores import ProtocolName

SECOND_PASS = "\n\nThe answer is ("
_ASK = "Give one option only."


class ReadingRule(Protocol):
    """What differs between the protocols."""

    name: ProtocolName

    def read(self, text: str, question: Question, truncated: bool) -> str | None:
        """Return the letter in a first-pass text, or None: the answer then needs a second pass.

        Args:
            truncated: the text reached the token limit.
        """

    def list_choices(self, question: Question, gold_letters: Sequence[str]) -> Sequence[str]:
        """Return the letters of the second pass. `gold_letters`: see `list_gold_letters`."""

    def continue_reply(self, text: str, prompts: PromptRenderer) -> str:
        """Return what follows the first-pass text in the prompt of the second pass."""


class OurRule:
    """The project's reader; the second pass may choose each option of the question."""

    name: ProtocolName = "ours"

    def read(self, text: str, question: Question, truncated: bool) -> str | None:
        """See `ReadingRule.read`."""
        return extract_answer(text, question.options, truncated).letter

    def list_choices(self, question: Question, gold_letters: Sequence[str]) -> Sequence[str]:
        """See `ReadingRule.list_choices`."""
        return list(question.options)

    def continue_reply(self, text: str, prompts: PromptRenderer) -> str:
        """See `ReadingRule.continue_reply`."""
        mark = find_closing_mark(text)
        return f"\n{mark}{SECOND_PASS}" if mark else SECOND_PASS


class PaperRule:
    """The authors' rule.

    Args:
        model: name of the policy's model.
    """

    name: ProtocolName = "paper"

    def __init__(self, model: str):
        self._model = model

    def read(self, text: str, question: Question, truncated: bool) -> str | None:
        """See `ReadingRule.read`."""
        return read_paper_answer(text, self._model)

    def list_choices(self, question: Question, gold_letters: Sequence[str]) -> Sequence[str]:
        """See `ReadingRule.list_choices`."""
        return gold_letters

    def continue_reply(self, text: str, prompts: PromptRenderer) -> str:
        """See `ReadingRule.continue_reply`."""
        if turn := prompts.ask_further(f"{_ASK} {SENTENCE}"):
            return turn
        stop = "" if text.rstrip().endswith(".") else "."
        return f"{stop}\n{_ASK}\n{SENTENCE}"


def list_rules(model: str) -> list[ReadingRule]:
    """Return the rules of both protocols. `model`: name of the policy's model."""
    return [OurRule(), PaperRule(model)]
