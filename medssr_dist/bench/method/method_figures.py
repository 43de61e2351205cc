"""From the letters of the arms' answers to the figures: accuracies and paired differences, over all seeds.

The unit is the question, as in evaluation/score_statistics.py. Each seed has its own questions, so the questions of all
seeds are pooled. The intervals say how far the difference of these trained policies is known; they do not say how much
training with another seed would change it. That is what the difference of each seed is listed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from medssr_dist.bench.method.arm_runs import ArmRun
from medssr_dist.bench.method.arms import BASE, TWO_STAGE
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import parse_record
from medssr_dist.data.wilson import Share
from medssr_dist.evaluation.question_letters import read_question_letters
from medssr_dist.evaluation.score_statistics import (
    PairedTest,
    ScoreInterval,
    accuracy_interval,
    paired_difference,
)
from medssr_dist.voting.quality_records import CurvePoint, VoteSummary

ALL, COMMON, RARE = "all", "common", "rare"
SETS = (ALL, COMMON, RARE)


@dataclass(frozen=True)
class MethodScore:
    """Accuracy of an arm on a set of questions, over all seeds, and of each seed.

    Example: MethodScore(accuracy=0.48, interval=ScoreInterval(0.47, 0.49), by_seed=(0.47, 0.49))
    """

    accuracy: float
    interval: ScoreInterval
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class MethodDifference:
    """Accuracy of one arm minus that of another on the same questions. Example: MethodDifference(test, (0.01, 0.02))"""

    test: PairedTest
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class ArmFigures:
    """The figures of one arm, each by set of questions.

    Example: ArmFigures("two stages", {"all": score, ...}, {"all": difference, ...}, None)

    Attributes:
        to_base: this arm minus the base policy; None for the base policy.
        two_stage_ahead: two stages minus this arm; None for these two.
    """

    title: str
    scores: dict[str, MethodScore]
    to_base: dict[str, MethodDifference] | None
    two_stage_ahead: dict[str, MethodDifference] | None


@dataclass(frozen=True)
class AlphaFigures:
    """The share of requests with a rare disease. Example: AlphaFigures(asked=0.5, requests=measure_share(101, 200))"""

    asked: float
    requests: Share

    @property
    def is_within(self) -> bool:
        """Whether what was asked lies in the 95% interval of what was achieved."""
        return self.requests.low is not None and self.requests.low <= self.asked <= self.requests.high


@dataclass(frozen=True)
class MethodFigures:
    """All figures of the benchmark.

    Attributes:
        arms: by name.
        precision: of the labels of the first seed, by threshold.
        alphas: one for each alpha tried.
        steps: GRPO steps of every arm. samples: of each step.
    """

    seeds: tuple[int, ...]
    questions: int
    generations: int
    steps: int
    samples: int
    arms: dict[str, ArmFigures]
    precision: tuple[CurvePoint, ...]
    alphas: tuple[AlphaFigures, ...]
    quick: bool


@dataclass(frozen=True)
class _Answers:
    """The share of right answers to each question of a seed, in the order of the file, and which are rare."""

    shares: np.ndarray
    rare: np.ndarray

    def select(self, on: str) -> np.ndarray:
        chosen = {ALL: np.ones_like(self.rare), COMMON: ~self.rare, RARE: self.rare}[on]
        return np.asarray(self.shares[chosen])


def read_arms(runs: Mapping[str, Sequence[ArmRun]]) -> dict[str, ArmFigures]:
    """Compute the figures of all arms. `runs`: name of an arm -> its finished runs, in the order of the seeds."""
    answers = {name: [_read_answers(one) for one in by_seed] for name, by_seed in runs.items()}
    figures = {}
    for name, own in answers.items():
        figures[name] = ArmFigures(
            title=runs[name][0].arm.title,
            scores={on: _score([one.select(on) for one in own]) for on in SETS},
            to_base=None if name == BASE else _compare(answers[BASE], own),
            two_stage_ahead=None if name in (BASE, TWO_STAGE) else _compare(own, answers[TWO_STAGE]),
        )
    return figures


def _read_answers(one: ArmRun) -> _Answers:
    rows = read_question_letters(one.run.evaluation.letters)
    given = [row.policies[one.arm.policy]["ours"].letters for row in rows]
    shares = [fmean(letter == row.truth for letter in letters) for row, letters in zip(rows, given, strict=True)]
    return _Answers(np.array(shares), np.array([row.rare for row in rows]))


def _score(by_seed: list[np.ndarray]) -> MethodScore:
    pooled = np.concatenate(by_seed)
    return MethodScore(
        accuracy=round(float(pooled.mean()), 6),
        interval=accuracy_interval(pooled, _even_weights(pooled)),
        by_seed=tuple(round(float(values.mean()), 6) for values in by_seed),
    )


def _compare(first: Sequence[_Answers], second: Sequence[_Answers]) -> dict[str, MethodDifference]:
    found = {}
    for on in SETS:
        one, other = ([each.select(on) for each in arm] for arm in (first, second))
        pooled = np.concatenate(one), np.concatenate(other)
        found[on] = MethodDifference(
            test=paired_difference(*pooled, _even_weights(pooled[0])),
            by_seed=tuple(round(float((b - a).mean()), 6) for a, b in zip(one, other, strict=True)),
        )
    return found


def _even_weights(values: np.ndarray) -> np.ndarray:
    return np.full((1, len(values)), 1 / len(values))


def read_precision(one: ArmRun) -> tuple[CurvePoint, ...]:
    """Return the precision of the labels of a run by threshold."""
    file = one.run.voting.summary
    return parse_record(VoteSummary, read_json(file), str(file)).quality.curve
