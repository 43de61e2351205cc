"""Request number -> request, by (random_seed, index) and the inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssr_dist.config import Config
from medssr_dist.records import Provenance, Question
from medssr_dist.synthesis.draws import Draws
from medssr_dist.synthesis.prompts import build_messages, request_hash

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage
    from medssr_dist.knowledge.retrieval import Entity


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what is sent, and all that its question must be able to tell of it."""

    messages: list[dict[str, str]]
    provenance: Provenance


class Plan:
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

    def request(self, index: int) -> Request:
        """Build request `index`."""
        drawn = self._draws.at(index)
        entity = drawn.entity
        passages = self._retrieve(entity.name) if entity else []
        messages = build_messages(drawn.seeds, entity.name if entity else None, passages)
        provenance = Provenance(
            index=index,
            prompt_hash=request_hash(messages, self._synthesis),
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
        return Request(messages, provenance)
