"""Simulated traces of a stage's votes: sound training, and the ways in which self-labelled training collapses.

Each step draws questions whose right letter is uniform. The policy answers a question with the letter that it prefers
there, with a probability that differs between questions, otherwise with another one. The base policy's preference is
the label. `progress` is 0 at the first step and 1 at the last.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from step_rows import make_metrics

from medssr_dist.training.rollout.groups import Group, Sample
from medssr_dist.training.rollout.vote_health import measure_health
from medssr_dist.training.step_metrics import StepMetrics

LETTERS = "ABCD"
OPTIONS = dict(zip(LETTERS, ("one", "two", "three", "four"), strict=True))


@dataclass(frozen=True)
class Habits:
    """How a policy answers at one moment.

    keeps_label: probability that it prefers the label of a question. sureness: mean probability of the letter that it
    prefers. favourite: probability that an answer is A whatever the question. length: tokens of an answer. truncated:
    probability that an answer is cut off, and then names no option.
    """

    keeps_label: float = 0.85
    sureness: float = 0.6
    favourite: float = 0.0
    length: float = 60.0
    truncated: float = 0.02


def make_group(letters: str, label: str, length: int = 10, number: int = 0) -> Group:
    """A group whose answers name `letters`; '-' stands for an answer that names none, '!' for one that was cut off."""
    samples = [
        Sample([7] * length, None, float(letter == label), letter in "-!", letter == "!", 0, _letter_or_none(letter))
        for letter in letters
    ]
    return Group(number, "p", [1], json.dumps({"answer": label, "options": OPTIONS}), samples)


def _letter_or_none(letter: str) -> str | None:
    return letter if letter in LETTERS else None


def trace(habits_at: Callable[[float], Habits], steps: int, seed: int, questions: int = 32) -> Iterator[StepMetrics]:
    """Yield the metrics of each step; a group has 8 answers."""
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        habits = habits_at((step - 1) / (steps - 1))
        groups = [_draw_group(habits, rng, number) for number in range(questions)]
        yield make_metrics(step, **asdict(measure_health(groups)))


def _draw_group(habits: Habits, rng: random.Random, number: int) -> Group:
    label = rng.choice(LETTERS)
    preferred = label if rng.random() < habits.keeps_label else rng.choice(LETTERS)
    sureness = min(1.0, max(0.25, rng.gauss(habits.sureness, 0.15)))
    length = max(1, round(rng.gauss(habits.length, habits.length / 10)))
    return make_group("".join(_draw_letter(habits, preferred, sureness, rng) for _ in range(8)), label, length, number)


def _draw_letter(habits: Habits, preferred: str, sureness: float, rng: random.Random) -> str:
    if rng.random() < habits.truncated:
        return "!"
    if rng.random() < habits.favourite:
        return "A"
    return preferred if rng.random() < sureness else rng.choice(LETTERS.replace(preferred, ""))
