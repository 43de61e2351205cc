"""Scores of the policies: mean and standard deviation of accuracy over the generations.

The records below are scores.json as it is written, key by key. Every generation is scored alone, without a majority
vote over them, and an answer without a letter counts as wrong. With a_g the accuracy of generation g = 1..n on the
N questions of a benchmark:

    a_g       = (1/N) sum over questions of [letter of generation g = truth]
    accuracy  = (1/n) sum over g of a_g
    std       = sqrt((1/(n-1)) sum over g of (a_g - accuracy)^2), the sample standard deviation; 0 for n = 1
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Question, Record, parse_record
from medssr_dist.evaluation.protocol import Answer

Benchmarks = dict[str, list[Question]]
STD_KIND = "sample, over generations"


class _Part(BaseModel):
    """A record inside scores.json; the schema version is that of the whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProtocolSettings(_Part):
    """The sampling settings that all policies were evaluated with.

    Example: ProtocolSettings(generations=4, temperature=0.6, top_p=0.95, top_k=20, max_tokens=8192, random_seed=42)
    """

    generations: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    random_seed: int
    std: str = Field(STD_KIND, description="kind of standard deviation in the file")


class BenchmarkFacts(_Part):
    """What a benchmark consists of. Example: BenchmarkFacts(questions=3, rare=1, truth_letters={"A": 2, "C": 1})."""

    questions: int
    rare: int = Field(description="questions about a rare disease")
    truth_letters: dict[str, int] = Field(description="letter -> questions whose answer it is")


class Accuracy(_Part):
    """Accuracy over the generations. Example: Accuracy(accuracy=0.5, std=0.5, per_generation=(1.0, 0.0, 0.5))."""

    accuracy: float = Field(description="mean over generations, 0 to 1")
    std: float = Field(description="sample standard deviation over generations")
    per_generation: tuple[float, ...]


class Score(_Part):
    """Score of one policy on one set of questions.

    Example: 2 questions x 3 generations, one letter found in the second pass and one answer without a letter:
    Score(questions=2, answers=6, accuracy=0.5, std=0.5, per_generation=(1.0, 0.0, 0.5), recovered=1, invalid=1,
    truncated=0, letters={"A": 3, "B": 2, "none": 1})
    """

    questions: int
    answers: int = Field(description="questions x generations")
    accuracy: float = Field(description="mean over generations, 0 to 1")
    std: float = Field(description="sample standard deviation over generations")
    per_generation: tuple[float, ...]
    recovered: int = Field(description="answers whose letter was found in the second pass")
    invalid: int = Field(description="answers without a letter after both passes")
    truncated: int = Field(description="answers whose first pass reached the token limit")
    letters: dict[str, int] = Field(description="letter -> answers; 'none' counts the invalid ones")


class PolicyScores(_Part):
    """Scores of one policy.

    Example: PolicyScores(benchmarks={"medqa": Score(...)}, macro=Accuracy(...), rare=None, tokens=80, seconds=4.0)
    """

    benchmarks: dict[str, Score]
    macro: Accuracy = Field(description="unweighted mean over the benchmarks")
    rare: Score | None = Field(description="the rare-disease questions of all benchmarks; None if there are none")
    tokens: int = Field(description="generated in both passes")
    seconds: float = Field(description="wall time of the evaluation")


class Scores(Record):
    """All of scores.json.

    Example: Scores(protocol=ProtocolSettings(...), benchmarks={"medqa": BenchmarkFacts(...)},
    policies={"base": PolicyScores(...), "stage2": PolicyScores(...)})
    """

    protocol: ProtocolSettings
    benchmarks: dict[str, BenchmarkFacts]
    policies: dict[str, PolicyScores] = Field(description="base, stage1 and stage2, or those that were evaluated")


def read_scores(file: Path) -> Scores:
    """Read a scores.json. Raises InputError naming the file and the field if it is absent or invalid."""
    return parse_record(Scores, read_json(file), str(file))


def build_scores(
    benchmarks: Benchmarks,
    answers: dict[str, list[Answer]],
    evaluation: Evaluation,
    random_seed: int,
    seconds: dict[str, float],
) -> Scores:
    """Score all policies.

    Args:
        benchmarks: name -> its questions.
        answers: policy name -> what `evaluate_policy` returned for the questions of all benchmarks.
        seconds: policy name -> wall time of its evaluation.
    Raises:
        KeyError: an answer is missing.
    """
    sampling = evaluation.model_dump(include={"generations", "temperature", "top_p", "top_k", "max_tokens"})
    return Scores(
        protocol=ProtocolSettings(**sampling, random_seed=random_seed),
        benchmarks={name: _describe(questions) for name, questions in benchmarks.items()},
        policies={
            policy: score_policy(benchmarks, given, evaluation.generations, seconds[policy])
            for policy, given in answers.items()
        },
    )


def score_policy(benchmarks: Benchmarks, answers: list[Answer], generations: int, seconds: float) -> PolicyScores:
    """Score one policy on each benchmark, on their macro average and on the rare-disease questions.

    Raises:
        KeyError: an answer is missing.
    """
    by_key = {(answer.question_id, answer.generation): answer for answer in answers}
    scores = {name: score_questions(questions, by_key, generations) for name, questions in benchmarks.items()}
    rare = [question for questions in benchmarks.values() for question in questions if question.rare]
    columns = zip(*(score.per_generation for score in scores.values()), strict=True)
    return PolicyScores(
        benchmarks=scores,
        macro=_average([fmean(column) for column in columns]),
        rare=score_questions(rare, by_key, generations) if rare else None,
        tokens=sum(answer.tokens for answer in by_key.values()),
        seconds=round(seconds, 1),
    )


def score_questions(questions: list[Question], by_key: dict[tuple[str, int], Answer], generations: int) -> Score:
    """Score one set of questions, each of which has a truth.

    Args:
        by_key: (question id, generation) -> answer.
    Raises:
        KeyError: an answer is missing.
    """
    rows = [[by_key[question.id, g] for question in questions] for g in range(generations)]
    given = [answer for row in rows for answer in row]
    letters = Counter(answer.letter or "none" for answer in given)
    average = _average([_share_correct(questions, row) for row in rows])
    return Score(
        questions=len(questions),
        answers=len(given),
        accuracy=average.accuracy,
        std=average.std,
        per_generation=average.per_generation,
        recovered=sum(answer.second_pass and answer.letter is not None for answer in given),
        invalid=letters["none"],
        truncated=sum(answer.truncated for answer in given),
        letters=dict(sorted(letters.items())),
    )


def _share_correct(questions: list[Question], row: list[Answer]) -> float:
    return fmean(answer.letter == question.truth for question, answer in zip(questions, row, strict=True))


def _average(accuracies: list[float]) -> Accuracy:
    return Accuracy(
        accuracy=round(fmean(accuracies), 6),
        std=round(stdev(accuracies), 6) if len(accuracies) > 1 else 0.0,
        per_generation=tuple(round(accuracy, 6) for accuracy in accuracies),
    )


def _describe(questions: list[Question]) -> BenchmarkFacts:
    truths = Counter(question.truth or "none" for question in questions)
    return BenchmarkFacts(
        questions=len(questions),
        rare=sum(question.rare for question in questions),
        truth_letters=dict(sorted(truths.items())),
    )
