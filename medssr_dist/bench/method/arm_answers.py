"""What is kept of a finished run: the letters of its answers, in a small file that can be committed.

A comparison takes hours. If its run directories are lost, it resumes from these files, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from medssr_dist.bench.result_file import describe_measurement
from medssr_dist.data.jsonl import read_json, write_atomic
from medssr_dist.data.records import Record, hash_content, parse_record
from medssr_dist.errors import InputError
from medssr_dist.evaluation.question_letters import QuestionLetters
from medssr_dist.voting.quality_records import CurvePoint

_NO_LETTER = "-"


class ArmAnswers(Record):
    """The answers of one arm's policy to the benchmark's questions; position i of each text is question i.

    Example: ArmAnswers(arm="mix", seed=1, settings="3f2a..", questions="90c1..", truth="AB", rare="01",
    letters=("AB", "A-"), measured="2026-01-31, commit 0c1d2e3f40, AMD EPYC")
    """

    arm: str
    seed: int
    settings: str = Field(description="hash of the settings that the run was asked for")
    questions: str = Field(description="hash of the questions' ids")
    truth: str = Field(description="the right letters")
    rare: str = Field(description="1: the question is about a rare disease, else 0")
    letters: tuple[str, ...] = Field(min_length=1, description="one text for each generation; '-': no letter")
    precision: tuple[CurvePoint, ...] = Field((), description="of the labels, by threshold; base arm only")
    measured: str = Field(description="date, commit and CPU")

    @model_validator(mode="after")
    def _refuse_other_lengths(self) -> ArmAnswers:
        if {len(text) for text in (self.rare, *self.letters)} != {len(self.truth)}:
            raise ValueError("truth, rare and letters have not the same number of questions")
        return self


def make_answers(
    arm: str, seed: int, settings: str, rows: Sequence[QuestionLetters], policy: str, precision: Sequence[CurvePoint]
) -> ArmAnswers:
    """Return the answers of `policy` in the lines of a letters.jsonl, with today's date, this commit and this CPU."""
    given = [row.policies[policy]["ours"].letters for row in rows]
    return ArmAnswers(
        arm=arm,
        seed=seed,
        settings=settings,
        questions=hash_content([row.question_id for row in rows]),
        truth="".join(row.truth for row in rows),
        rare="".join("01"[row.rare] for row in rows),
        letters=tuple("".join(letter or _NO_LETTER for letter in one) for one in zip(*given, strict=True)),
        precision=tuple(precision),
        measured=describe_measurement(),
    )


def write_answers(file: Path, answers: ArmAnswers) -> None:
    """Write the answers to `file`, on one line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, answers.model_dump_json() + "\n")


def read_answers(file: Path, settings: str) -> ArmAnswers | None:
    """Read the answers in `file`; None if there is no such file.

    Raises:
        InputError: the file is no such record, or its run had other settings than `settings`.
    """
    if not file.exists():
        return None
    answers = parse_record(ArmAnswers, read_json(file), str(file))
    if answers.settings != settings:
        raise InputError(f"{file} has the answers of a run with other settings ({answers.measured}); delete it")
    return answers
