"""What each request is about, drawn by (random_seed, index) alone.

A resumed run, or one split over machines by index, makes the same draws, in whatever order they are asked
for. One keyed hash a request gives eight 64-bit words; rho, the seed pair and the entity each read words of
their own, so a change of alpha changes only which requests are injected.

`entity_choice: coverage` looks back: an entity's weight is 1 / (1 + times it was drawn by lower indices). All
lower indices are therefore drawn first, by the same hashes, and one number an index is kept: about 2 s and
4 MB a million requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Provenance, Question
from medssr_dist.synthesis.prompts import build_messages, hash_request

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage
    from medssr_dist.knowledge.retrieval import Entity

import struct
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from medssr_dist.errors import InputError

if TYPE_CHECKING:
    from medssr_dist.knowledge.retrieval import Entity

_WORDS = struct.Struct("<8Q")
_NOT_INJECTED = -1


@dataclass(frozen=True, slots=True)
class Draw:
    """One request: rho in [0, 1), two different seed questions, and the entity if rho < alpha."""

    index: int
    rho: float
    seeds: tuple[Question, Question]
    entity: Entity | None
    topic: str = ""  # that the seed pair was drawn by; '' if drawn uniformly


class Draws:
    """The draws of a run: knowledge is injected when rho < alpha (paper section 3.1).

    Args:
        seeds: at least 2. With `seed_pairs` "topic" both are of one topic; the first is uniform among those
            that have a partner, so that a topic is chosen by its number of seeds.
        entities: at least 1 unless alpha is 0.

    Raises:
        InputError: by topic, when seeds have none, or no two share one.
    """

    def __init__(
        self,
        random_seed: int,
        alpha: float,
        seeds: Sequence[Question],
        entities: Sequence[Entity],
        seed_pairs: Literal["uniform", "topic"] = "uniform",
        entity_choice: Literal["uniform", "coverage"] = "uniform",
    ):
        self._random_seed = random_seed
        self._alpha = alpha
        self._entities = entities
        self._by_topic = seed_pairs == "topic"
        self._seeds, self._groups = _topic_groups(seeds) if self._by_topic else (seeds, [(0, len(seeds))] * len(seeds))
        self._coverage = _Coverage(random_seed, alpha, len(entities)) if entity_choice == "coverage" else None

    def at(self, index: int) -> Draw:
        """Draw request `index`."""
        words = _words(self._random_seed, index)
        rho = _share(words[0])
        first, second = self._pair(words[1], words[2])
        topic = first.topic if self._by_topic else ""
        entity = self._entity(index, words[3]) if rho < self._alpha else None
        return Draw(index, rho, (first, second), entity, topic)

    def _pair(self, one: int, other: int) -> tuple[Question, Question]:
        """Two seeds of one group, whose seeds stand side by side."""
        first = _below(one, len(self._seeds))
        start, size = self._groups[first]
        second = start + _below(other, size - 1)
        return self._seeds[first], self._seeds[second + (second >= first)]

    def _entity(self, index: int, word: int) -> Entity:
        if self._coverage is None:
            return self._entities[_below(word, len(self._entities))]
        return self._entities[self._coverage.at(index)]


class _Coverage:
    """Entity numbers drawn with weight 1 / (1 + times drawn so far), by rejection.

    An entity is proposed uniformly and taken with probability (1 + fewest) / (1 + its times), which gives these
    weights exactly; since the times stay close together, few proposals are refused.
    """

    def __init__(self, random_seed: int, alpha: float, entities: int):
        self._random_seed = random_seed
        self._alpha = alpha
        self._chosen = array("i")  # by index
        self._times = array("I", bytes(4 * entities))
        self._fewest, self._with_fewest = 0, entities

    def at(self, index: int) -> int:
        while len(self._chosen) <= index:
            self._chosen.append(self._draw(len(self._chosen)))
        return self._chosen[index]

    def _draw(self, index: int) -> int:
        words = _words(self._random_seed, index)
        if _share(words[0]) >= self._alpha:
            return _NOT_INJECTED
        for word in self._proposals(index, words):
            entity = (word >> 32) * len(self._times) >> 32
            if (word & 0xFFFFFFFF) * (1 + self._times[entity]) < (1 + self._fewest) << 32:
                break
        self._count(entity)
        return entity

    def _proposals(self, index: int, words: tuple[int, ...]) -> Iterator[int]:
        yield from words[3:]
        attempt = 1
        while True:
            yield from _words(self._random_seed, index, attempt)
            attempt += 1

    def _count(self, entity: int) -> None:
        self._times[entity] += 1
        if self._times[entity] == self._fewest + 1:
            self._with_fewest -= 1
        if not self._with_fewest:
            self._fewest += 1
            self._with_fewest = self._times.count(self._fewest)


def _topic_groups(seeds: Sequence[Question]) -> tuple[list[Question], list[tuple[int, int]]]:
    """Seeds that have a partner, sorted by topic, and for each the (start, size) of its topic's stretch."""
    by_topic: dict[str, list[Question]] = {}
    for seed in seeds:
        by_topic.setdefault(seed.topic, []).append(seed)
    without = len(by_topic.get("", ()))
    pairable, groups = [], []
    for _, group in sorted(by_topic.items()):
        if len(group) > 1:
            groups += [(len(pairable), len(group))] * len(group)
            pairable += group
    if without or not pairable:
        problem = f"{without:,} of {len(seeds):,} seeds have no topic" if without else "no two seeds share a topic"
        raise InputError(
            f"synthesis.seed_pairs = topic, but {problem}; seed from data sets that give one "
            "(MedMCQA, MedQA in mediQ's form, hpo:seeds), or set seed_pairs: uniform"
        )
    return pairable, groups


def _words(random_seed: int, index: int, attempt: int = 0) -> tuple[int, ...]:
    """Eight random 64-bit words."""
    return _WORDS.unpack(blake2b(b"%d:%d:%d" % (random_seed, index, attempt)).digest())


def _share(word: int) -> float:
    """Uniform in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) / (1 << 53)


def _below(word: int, count: int) -> int:
    """Uniform in 0..count-1."""
    return word * count >> 64


@dataclass(frozen=True, slots=True)
class QuestionRequest:
    """One request: what is sent, and all that its question must be able to tell of it."""

    messages: list[dict[str, str]]
    provenance: Provenance


class RequestPlan:
    """All requests of a run. `retrieve` gives the passages of an entity's name and must be quick."""

    def __init__(
        self,
        config: Config,
        seeds: list[Question],
        entities: list[Entity],
        retrieve: Callable[[str], list[Passage]],
        commit: str,
    ):
        synthesis = config.synthesis
        self._synthesis = synthesis
        self._random_seed = config.runtime.random_seed
        self._retrieve = retrieve
        self._commit = commit
        self._teacher = ", ".join(synthesis.models)
        self._draws = Draws(
            self._random_seed, synthesis.alpha, seeds, entities, synthesis.seed_pairs, synthesis.entity_choice
        )

    def request(self, index: int) -> QuestionRequest:
        """Build request `index`."""
        drawn = self._draws.at(index)
        entity = drawn.entity
        passages = self._retrieve(entity.name) if entity else []
        messages = build_messages(drawn.seeds, entity.name if entity else None, passages)
        provenance = Provenance(
            index=index,
            prompt_hash=hash_request(messages, self._synthesis),
            seed_ids=tuple(seed.id for seed in drawn.seeds),
            rho=drawn.rho,
            entity=entity.name if entity else None,
            entity_id=entity.id if entity else None,
            passage_ids=tuple(passage.id for passage in passages),
            topic=drawn.topic,
            teacher=self._teacher,
            random_seed=self._random_seed,
            commit=self._commit,
        )
        return QuestionRequest(messages, provenance)
