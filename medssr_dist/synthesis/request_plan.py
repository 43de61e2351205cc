"""What each request of a run asks for, drawn from (random_seed, index) alone.

A resumed run, or a run split over machines by index, makes the same draws in any order. One keyed hash per request
gives eight random 64-bit words. rho, the seed pair and the entity each use words of that hash that nothing else uses,
so a change of alpha only changes which requests get injected knowledge.

With `entity_choice: coverage` the weight of an entity is 1 / (1 + number of times that lower indices drew it). All
lower indices are therefore drawn first, by the same hashes, and one number per index is kept: about 2 s and 4 MB per
million requests.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Provenance, Question
from medssr_dist.errors import InputError
from medssr_dist.synthesis.prompts import build_messages, hash_request, load_question_prompt

if TYPE_CHECKING:
    from medssr_dist.knowledge.entities import Entity
    from medssr_dist.knowledge.passages import Passage

_WORDS = struct.Struct("<8Q")
_NOT_INJECTED = -1


@dataclass(frozen=True, slots=True)
class Draw:
    """One request before its prompt is built.

    Attributes:
        rho: uniform in [0, 1); knowledge is injected if rho < alpha.
        seeds: two different seed questions.
        entity: the rare disease, None without injected knowledge.
        topic: the topic by which the seed pair was drawn; '' if it was drawn uniformly.
    """

    index: int
    rho: float
    seeds: tuple[Question, Question]
    entity: Entity | None
    topic: str = ""


class Draws:
    """The draws of a run: knowledge is injected if rho < alpha (paper section 3.1).

    Args:
        seeds: at least 2. With `seed_pairs` "topic", both seeds have the same topic. The first is drawn uniformly
            among the seeds whose topic has another seed, so a topic is drawn in proportion to its number of seeds.
        entities: at least 1 unless alpha is 0.

    Raises:
        InputError: `seed_pairs` is "topic" and a seed has no topic, or no two seeds share one.
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
        self._seeds, self._groups = (
            _group_by_topic(seeds) if self._by_topic else (seeds, [(0, len(seeds))] * len(seeds))
        )
        self._coverage = _Coverage(random_seed, alpha, len(entities)) if entity_choice == "coverage" else None

    def draw(self, index: int) -> Draw:
        """Draw request `index`."""
        words = _words(self._random_seed, index)
        rho = _share(words[0])
        first, second = self._draw_pair(words[1], words[2])
        topic = first.topic if self._by_topic else ""
        entity = self._draw_entity(index, words[3]) if rho < self._alpha else None
        return Draw(index, rho, (first, second), entity, topic)

    def _draw_pair(self, one: int, other: int) -> tuple[Question, Question]:
        """Return two seeds of one group; the seeds of a group are adjacent."""
        first = _below(one, len(self._seeds))
        start, size = self._groups[first]
        second = start + _below(other, size - 1)
        return self._seeds[first], self._seeds[second + (second >= first)]

    def _draw_entity(self, index: int, word: int) -> Entity:
        if self._coverage is None:
            return self._entities[_below(word, len(self._entities))]
        return self._entities[self._coverage.draw(index)]


class _Coverage:
    """Draws entity numbers with weight 1 / (1 + times drawn so far), by rejection sampling.

    An entity is proposed uniformly and accepted with probability (1 + fewest) / (1 + its times), where `fewest` is the
    lowest count of all entities. This gives exactly these weights. The counts stay close together, so few proposals
    are rejected.
    """

    def __init__(self, random_seed: int, alpha: float, entities: int):
        self._random_seed = random_seed
        self._alpha = alpha
        self._chosen = array("i")  # by index
        self._times = array("I", bytes(4 * entities))
        self._fewest, self._with_fewest = 0, entities

    def draw(self, index: int) -> int:
        while len(self._chosen) <= index:
            self._chosen.append(self._draw_next(len(self._chosen)))
        return self._chosen[index]

    def _draw_next(self, index: int) -> int:
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


def _group_by_topic(seeds: Sequence[Question]) -> tuple[list[Question], list[tuple[int, int]]]:
    """Return the seeds whose topic has another seed, sorted by topic, and the (start, size) of each seed's topic."""
    by_topic: dict[str, list[Question]] = {}
    for seed in seeds:
        by_topic.setdefault(seed.topic, []).append(seed)
    without = len(by_topic.get("", ()))
    pairable: list[Question] = []
    groups: list[tuple[int, int]] = []
    for _, group in sorted(by_topic.items()):
        if len(group) > 1:
            groups += [(len(pairable), len(group))] * len(group)
            pairable += group
    if without or not pairable:
        problem = f"{without:,} of {len(seeds):,} seeds have no topic" if without else "no two seeds share a topic"
        raise InputError(
            f"synthesis.seed_pairs = topic, but {problem}; use data sets that give topics "
            "(MedMCQA, MedQA in mediQ's form, hpo:seeds), or set seed_pairs: uniform"
        )
    return pairable, groups


def _words(random_seed: int, index: int, attempt: int = 0) -> tuple[int, ...]:
    """Return eight random 64-bit words."""
    return _WORDS.unpack(blake2b(b"%d:%d:%d" % (random_seed, index, attempt)).digest())


def _share(word: int) -> float:
    """Return a uniform number in [0, 1), with the 53 bits of a float."""
    return (word >> 11) / (1 << 53)


def _below(word: int, count: int) -> int:
    """Return a uniform number in 0..count-1."""
    return word * count >> 64


@dataclass(frozen=True, slots=True)
class QuestionRequest:
    """One request: the chat messages to send, and the provenance that its question will carry."""

    messages: list[dict[str, str]]
    provenance: Provenance


class RequestPlan:
    """All requests of a run, by number.

    Args:
        retrieve: returns the passages for the name of an entity; it must be fast.
        commit: code commit, for the provenance.

    Attributes:
        prompt: the template of all prompts.

    Raises:
        InputError: `synthesis.prompt_file` is not a prompt.
    """

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
        self.prompt = load_question_prompt(synthesis.prompt_file)
        self._draws = Draws(
            self._random_seed, synthesis.alpha, seeds, entities, synthesis.seed_pairs, synthesis.entity_choice
        )

    def build_request(self, index: int) -> QuestionRequest:
        """Build request `index` (paper section 3.1)."""
        drawn = self._draws.draw(index)
        entity = drawn.entity
        passages = self._retrieve(entity.name) if entity else []
        messages = build_messages(drawn.seeds, entity.name if entity else None, passages, self.prompt)
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
