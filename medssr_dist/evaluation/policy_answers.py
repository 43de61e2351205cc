"""The answers of a policy: what both passes gave, as it is stored, and the letters that the protocols read in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from medssr_dist.data.records import Question, Record
from medssr_dist.evaluation.question_letters import FinalLetters
from medssr_dist.evaluation.reading_rules import ReadingRule
from medssr_dist.evaluation.scores import ProtocolName


class Answer(Record):
    """One generation of one policy for one question, a line of answers.jsonl.

    The key is (policy, question_id, sampling, generation).

    Example: Answer(question_id="ab..", policy="3f..", sampling="77..", generation=2, seed=1812,
    text="... The answer is (B).", tokens=212, truncated=False)
    """

    question_id: str
    policy: str = Field(description="fingerprint of the evaluated policy")
    sampling: str = Field(description="hash of the sampling parameters, the random seed and the prompt format")
    generation: int = Field(description="0..n-1")
    seed: int
    text: str
    tokens: int = Field(description="generated tokens")
    truncated: bool = Field(description="the text reached the token limit")


class SecondPass(Record):
    """The second pass of one protocol for one generation, a line of second_pass.jsonl.

    The key is (policy, question_id, sampling, generation, protocol, choices).

    Example: SecondPass(question_id="ab..", policy="3f..", sampling="77..", generation=2, protocol="ours",
    choices="ABCD", letter="B", tokens=1)
    """

    question_id: str
    policy: str
    sampling: str
    generation: int
    protocol: ProtocolName
    choices: str = Field(description="the letters that were allowed")
    letter: str | None = Field(description="None: the context had no room for another token")
    tokens: int


class SecondPassKey(NamedTuple):
    """Which second pass of a policy. Example: SecondPassKey("ab..", 2, "paper", "ABCDE")."""

    question_id: str
    generation: int
    protocol: ProtocolName
    choices: str


@dataclass
class PolicyAnswers:
    """All answers of one policy to the questions of all benchmarks.

    Attributes:
        rules: of both protocols.
        generations: answers to each question.
        first: (question id, generation) -> answer.
        second: the second passes.
    """

    rules: Sequence[ReadingRule]
    generations: int
    first: dict[tuple[str, int], Answer] = field(default_factory=dict)
    second: dict[SecondPassKey, SecondPass] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Generated tokens of both passes."""
        return sum(answer.tokens for answer in self.first.values()) + sum(
            found.tokens for found in self.second.values()
        )

    def count_truncated(self, question_ids: Iterable[str]) -> int:
        """Return the number of answers to these questions whose first pass reached the token limit."""
        return sum(
            self.first[question_id, g].truncated for question_id in question_ids for g in range(self.generations)
        )

    def read(self, rule: ReadingRule, question: Question, generation: int) -> str | None:
        """Return the letter that a protocol reads in the first pass of an answer."""
        answer = self.first[question.id, generation]
        return rule.read(answer.text, question, answer.truncated)

    def list_letters(self, question: Question, gold_letters: Sequence[str]) -> dict[ProtocolName, FinalLetters]:
        """Return the letters of all generations under each protocol.

        Args:
            gold_letters: of the benchmark that the question is in (`list_gold_letters`).
        Raises:
            KeyError: an answer is missing.
        """
        found: dict[ProtocolName, FinalLetters] = {}
        for rule in self.rules:
            letters = [self.read(rule, question, g) for g in range(self.generations)]
            choices = "".join(rule.list_choices(question, gold_letters))
            recovered = []
            for g in (g for g, letter in enumerate(letters) if letter is None):
                letters[g] = self.second[SecondPassKey(question.id, g, rule.name, choices)].letter
                recovered += [g] if letters[g] else []
            found[rule.name] = FinalLetters(letters=tuple(letters), recovered=tuple(recovered))
        return found
