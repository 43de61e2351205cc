"""What a data set consists of, counted: what a reader of its scores has to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.data.records import Question


@dataclass(frozen=True)
class DataSetFacts:
    """Counts of a data set.

    Example: DataSetFacts(questions=782, duplicates=5, commonest_letter="A", commonest=570, answered=782, rare=38,
    rare_by={"auto": 38}) is BioASQ: whoever always answers A has 72.9% right.

    Attributes:
        duplicates: questions that repeat an earlier one, with the same stem and options.
        commonest_letter: the most frequent right answer, of equally frequent ones the first; None if none is known.
        commonest: questions with that answer.
        answered: questions with a known answer.
        rare: questions about a rare disease.
        rare_by: what says so ('source', 'column', 'auto', or 'record' for our own records) -> such questions.
    """

    questions: int
    duplicates: int
    commonest_letter: str | None
    commonest: int
    answered: int
    rare: int
    rare_by: dict[str, int]

    @property
    def constant_baseline(self) -> float:
        """The accuracy of always answering with the commonest letter, 0 to 1; 0 if no answer is known."""
        return self.commonest / self.answered if self.answered else 0.0

    def describe(self) -> str:
        """Return one line: '782 questions, exact duplicates: 5, always A: 72.9%, 38 rare (auto)'."""
        parts = [f"{self.questions:,} questions"]
        if self.duplicates:
            parts.append(f"exact duplicates: {self.duplicates:,}")
        if self.commonest_letter:
            parts.append(f"always {self.commonest_letter}: {self.constant_baseline:.1%}")
        if self.answered < self.questions:
            parts.append(f"{self.questions - self.answered:,} without an answer")
        if self.rare_by:
            parts.append(f"{self.rare:,} rare ({', '.join(sorted(self.rare_by))})")
        return ", ".join(parts)


def count_facts(questions: Sequence[Question]) -> DataSetFacts:
    """Count what `questions` consist of."""
    truths = Counter(question.truth for question in questions if question.truth)
    letter = min(truths, key=lambda letter: (-truths[letter], letter), default=None)
    marked = [question for question in questions if question.rare]
    return DataSetFacts(
        questions=len(questions),
        duplicates=len(questions) - len({question.id for question in questions}),
        commonest_letter=letter,
        commonest=truths[letter] if letter else 0,
        answered=truths.total(),
        rare=len(marked),
        rare_by=dict(Counter(question.rare_by or "record" for question in marked)),
    )
