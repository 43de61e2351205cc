"""The records of scores.json, key by key. `scoring.py` computes them.

Every generation is scored alone, without a majority vote over them, and an answer without a letter counts as wrong.
With a_g the accuracy of generation g = 1..n on the N questions of a benchmark:

    a_g       = (1/N) sum over questions of [letter of generation g = truth]
    accuracy  = (1/n) sum over g of a_g
    std       = ours: sqrt((1/(n-1)) sum over g of (a_g - accuracy)^2), the sample standard deviation; 0 for n = 1
                paper: the same with 1/n, of values that are rounded as the authors' script does (`paper_rule.py`)

The standard deviation says how much one run of n answers varies. How far an accuracy may be from that on all such
questions is said by its interval (`score_statistics.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medssr_dist.data.records import Record, read_record

ProtocolName = Literal["ours", "paper"]
PROTOCOLS: tuple[ProtocolName, ...] = ("ours", "paper")
STD_KINDS: Mapping[ProtocolName, str] = {"ours": "sample, over generations", "paper": "population, over generations"}
# Sets of questions beside the benchmarks; OTHERS are those that are not marked as rare, where some are.
MACRO, RARE, OTHERS = "macro average", "rare diseases", "other questions"
Interval = tuple[float, float]


class _Part(BaseModel):
    """A record inside scores.json; the schema version is that of the whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProtocolSettings(_Part):
    """The sampling settings that all policies were evaluated with.

    Example: ProtocolSettings(generations=4, temperature=0.6, top_p=0.95, top_k=20, max_tokens=8192, random_seed=42,
    headline="ours", std="sample, over generations")
    """

    generations: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    random_seed: int
    headline: ProtocolName = Field("ours", description="evaluation.protocol: whose scores tables and plots show")
    std: str = Field(STD_KINDS["ours"], description="kind of standard deviation under that protocol")


class BenchmarkFacts(_Part):
    """What a benchmark consists of.

    Example: BenchmarkFacts(questions=3, rare=1, rare_by={"auto": 1}, truth_letters={"A": 2, "C": 1}, constant=0.667,
    duplicates=0)
    """

    questions: int
    rare: int = Field(description="questions about a rare disease")
    rare_by: dict[str, int] = Field({}, description="what says that they are (see Question.rare_by) -> questions")
    truth_letters: dict[str, int] = Field(description="letter -> questions whose answer it is")
    constant: float | None = Field(
        None, description="accuracy of always answering the commonest letter: its share of the questions"
    )
    duplicates: int = Field(0, description="questions that are exact copies of an earlier one of the benchmark")


class Accuracy(_Part):
    """Accuracy over the generations.

    Example: Accuracy(accuracy=0.5, std=0.5, per_generation=(1.0, 0.0, 0.5), interval=(0.31, 0.69))
    """

    accuracy: float = Field(description="mean over generations, 0 to 1")
    std: float = Field(description="standard deviation over generations")
    per_generation: tuple[float, ...]
    interval: Interval | None = Field(None, description="95%, clustered by question; None in files of older versions")


class Score(Accuracy):
    """Score of one policy on one set of questions.

    Example: 2 questions x 3 generations, one letter found in the second pass and one answer without a letter:
    Score(questions=2, answers=6, accuracy=0.5, std=0.5, per_generation=(1.0, 0.0, 0.5), interval=(0.1, 0.9),
    recovered=1, invalid=1, truncated=0, letters={"A": 3, "B": 2, "none": 1}, pass_at={1: 0.5, 2: 0.8, 3: 1.0},
    majority_at={1: 0.5, 2: 0.5, 3: 0.5})
    """

    questions: int
    answers: int = Field(description="questions x generations")
    recovered: int = Field(description="answers whose letter was found in the second pass")
    invalid: int = Field(description="answers without a letter after both passes")
    truncated: int = Field(description="answers whose first pass reached the token limit")
    letters: dict[str, int] = Field(description="letter -> answers; 'none' counts the invalid ones")
    pass_at: dict[int, float] = Field({}, description="k -> chance that at least one of k answers is right")
    majority_at: dict[int, float] = Field({}, description="k -> chance that the majority of k answers is right")


class ProtocolScores(_Part):
    """Scores of one policy under one protocol.

    Example: ProtocolScores(benchmarks={"medqa": Score(...)}, macro=Accuracy(...), rare=None, rare_benchmarks={})
    """

    benchmarks: dict[str, Score]
    macro: Accuracy = Field(description="unweighted mean over the benchmarks")
    rare: Score | None = Field(description="the rare-disease questions of all benchmarks; None if there are none")
    others: Score | None = Field(None, description="all questions but these, where there are rare ones")
    rare_benchmarks: dict[str, Score] = Field({}, description="benchmark -> its rare-disease questions, if it has any")


class PolicyScores(_Part):
    """Scores of one policy, from the same answers under both protocols.

    Files of older versions, which have one protocol and no list of them, are read as `ours`.

    Example: PolicyScores(protocols={"ours": ProtocolScores(...), "paper": ProtocolScores(...)}, tokens=80, seconds=4.0)
    """

    protocols: dict[ProtocolName, ProtocolScores]
    tokens: int = Field(description="generated in both passes")
    seconds: float = Field(description="wall time of the evaluation")

    @model_validator(mode="before")
    @classmethod
    def _read_older_version(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "protocols" in row or "benchmarks" not in row:
            return row
        older = ("benchmarks", "macro", "rare")
        rest = {key: value for key, value in row.items() if key not in older}
        return rest | {"protocols": {"ours": {key: row[key] for key in older if key in row}}}


class Difference(_Part):
    """Accuracy of `second` minus that of `first`, on the same questions.

    Example: Difference(protocol="ours", first="base", second="stage2", on="medqa", difference=0.021, interval=(0.004,
    0.038), p=0.016, questions=1273)
    """

    protocol: ProtocolName
    first: str
    second: str
    on: str = Field(description="benchmark, 'macro average', 'rare diseases' or 'other questions'")
    difference: float
    interval: Interval = Field(description="95%, of the difference, clustered by question")
    p: float = Field(description="two-sided, from a paired permutation test over questions")
    questions: int = Field(description="distinct questions")


class Scores(Record):
    """All of scores.json.

    Example: Scores(protocol=ProtocolSettings(...), benchmarks={"medqa": BenchmarkFacts(...)},
    policies={"base": PolicyScores(...), "stage2": PolicyScores(...)}, differences=(Difference(...),))
    """

    protocol: ProtocolSettings
    benchmarks: dict[str, BenchmarkFacts]
    policies: dict[str, PolicyScores] = Field(description="base, stage1 and stage2, or those that were evaluated")
    differences: tuple[Difference, ...] = Field((), description="of each two policies, for each set of questions")

    @property
    def headline(self) -> dict[str, ProtocolScores]:
        """Policy -> its scores under `evaluation.protocol`."""
        return {name: policy.protocols[self.protocol.headline] for name, policy in self.policies.items()}

    @property
    def headline_differences(self) -> list[Difference]:
        """The differences under `evaluation.protocol`."""
        return [found for found in self.differences if found.protocol == self.protocol.headline]


def read_scores(file: Path) -> Scores:
    """Read a scores.json. Raises InputError naming the file and the field if it is absent or invalid."""
    return read_record(Scores, file)
