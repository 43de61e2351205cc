"""The final letters of all policies for each question, a line of letters.jsonl: what all scores are computed from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Record, parse_record
from medssr_dist.evaluation.scores import ProtocolName


class FinalLetters(BaseModel):
    """The letters of one policy's answers to a question under one protocol, by generation.

    Example: FinalLetters(letters=("B", "B", None, "C"), recovered=(3,)): the C comes from the second pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    letters: tuple[str | None, ...] = Field(description="None: no letter after both passes, which is wrong")
    recovered: tuple[int, ...] = Field((), description="generations whose letter was found in the second pass")


class QuestionLetters(Record):
    """One question of a benchmark with the letters of all policies, under both protocols.

    Example: QuestionLetters(benchmark="medqa", question_id="ab..", truth="B", rare=False,
    policies={"base": {"ours": FinalLetters(letters=("B", "C")), "paper": FinalLetters(letters=("B", None))}})
    """

    benchmark: str
    question_id: str
    truth: str
    rare: bool
    policies: dict[str, dict[ProtocolName, FinalLetters]]


def read_question_letters(file: Path) -> list[QuestionLetters]:
    """Read a letters.jsonl. Raises InputError naming the file and the field if it is absent or invalid."""
    return [parse_record(QuestionLetters, row, str(file)) for row in read_jsonl(file)]
