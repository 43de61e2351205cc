"""From the letters of the arms' answers to the figures: accuracies and paired differences, over all seeds.

The unit is the question, as in evaluation/score_statistics.py. Each seed has its own questions, so the questions of all
seeds are pooled. The intervals say how far the difference of these trained policies is known; they do not say how much
training with another seed would change it. That is what the difference of each seed is listed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medssr_dist.bench.method.arm_answers import ArmAnswers
from medssr_dist.bench.method.arms import ARMS, BASE, CONTROLS, STAGE1_ONLY, TWO_STAGE
from medssr_dist.data.wilson import Share
from medssr_dist.errors import InputError
from medssr_dist.evaluation.score_statistics import (
    PairedTest,
    ScoreInterval,
    accuracy_interval,
    paired_difference,
)
from medssr_dist.voting.quality_records import CurvePoint

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

    Example: ArmFigures("two stages", {"all": score, ...}, {"all": difference, ...}, None, None)

    Attributes:
        to_base: this arm minus the base policy; None for the base policy.
        two_stage_ahead: two stages minus this arm; None for these two, and where the two stages have not run.
        stage1_ahead: stage 1 only minus this arm, for the controls; None where stage 1 only has not run.
    """

    title: str
    scores: dict[str, MethodScore]
    to_base: dict[str, MethodDifference] | None
    two_stage_ahead: dict[str, MethodDifference] | None
    stage1_ahead: dict[str, MethodDifference] | None


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
        measured: date, commit and CPU of the run of each seed, by arm.
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
    measured: dict[str, tuple[str, ...]]
    precision: tuple[CurvePoint, ...]
    alphas: tuple[AlphaFigures, ...]
    quick: bool


@dataclass(frozen=True)
class _Shares:
    """The share of right answers to each question of a seed, in the order of the file, and which are rare."""

    shares: np.ndarray
    rare: np.ndarray

    def select(self, on: str) -> np.ndarray:
        chosen = {ALL: np.ones_like(self.rare), COMMON: ~self.rare, RARE: self.rare}[on]
        return np.asarray(self.shares[chosen])


def compute_arms(answers: Mapping[str, Sequence[ArmAnswers]]) -> dict[str, ArmFigures]:
    """Compute the figures of all arms.

    Args:
        answers: name of an arm -> the answers of its runs, in the order of the seeds.

    Raises:
        InputError: the runs of a seed answered different questions.
    """
    _refuse_other_questions(answers)
    shares = {name: [_compute_shares(one) for one in by_seed] for name, by_seed in answers.items()}
    titles = {arm.name: arm.title for arm in ARMS}
    behind_two = shares.keys() - {BASE, TWO_STAGE} if TWO_STAGE in shares else set()
    behind_one = shares.keys() & set(CONTROLS) if STAGE1_ONLY in shares else set()
    figures = {}
    for name, own in shares.items():
        figures[name] = ArmFigures(
            title=titles[name],
            scores={on: _score([one.select(on) for one in own]) for on in SETS},
            to_base=None if name == BASE else _compare(shares[BASE], own),
            two_stage_ahead=_compare(own, shares[TWO_STAGE]) if name in behind_two else None,
            stage1_ahead=_compare(own, shares[STAGE1_ONLY]) if name in behind_one else None,
        )
    return figures


def _refuse_other_questions(answers: Mapping[str, Sequence[ArmAnswers]]) -> None:
    for name, by_seed in answers.items():
        for base, own in zip(answers[BASE], by_seed, strict=True):
            if own.questions != base.questions:
                raise InputError(f"seed {own.seed}: {name} answered other questions than {BASE}; delete its answers")


def _compute_shares(answers: ArmAnswers) -> _Shares:
    right = [[letter == truth for letter, truth in zip(one, answers.truth, strict=True)] for one in answers.letters]
    return _Shares(np.mean(right, axis=0), np.array([mark == "1" for mark in answers.rare]))


def _score(by_seed: list[np.ndarray]) -> MethodScore:
    pooled = np.concatenate(by_seed)
    return MethodScore(
        accuracy=round(float(pooled.mean()), 6),
        interval=accuracy_interval(pooled, _even_weights(pooled)),
        by_seed=tuple(round(float(values.mean()), 6) for values in by_seed),
    )


def _compare(first: Sequence[_Shares], second: Sequence[_Shares]) -> dict[str, MethodDifference]:
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
