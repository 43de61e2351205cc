"""What each request is about, drawn by (random_seed, index) alone.

A resumed run, or one split over machines by index, therefore makes the same draws. The order of the
draws is fixed: rho, seed pair, entity; so a change of alpha changes only which requests are injected.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssr_dist.records import Question, content_hash

if TYPE_CHECKING:
    from medssr_dist.knowledge.retrieval import Entity


@dataclass(frozen=True)
class Draw:
    """One request: rho in [0, 1), two different seed questions, and the entity if rho < alpha."""

    index: int
    rho: float
    seeds: tuple[Question, Question]
    entity: Entity | None


def draw(index: int, random_seed: int, alpha: float, seeds: Sequence[Question], entities: Sequence[Entity]) -> Draw:
    """Draw request `index`: knowledge is injected when rho < alpha (paper section 3.1).

    Args:
        seeds: at least 2.
        entities: at least 1 unless alpha is 0.
    """
    rng = random.Random(content_hash([random_seed, index]))
    rho = rng.random()
    first, second = rng.sample(range(len(seeds)), 2)
    entity = rng.choice(entities) if rho < alpha else None
    return Draw(index, rho, (seeds[first], seeds[second]), entity)
