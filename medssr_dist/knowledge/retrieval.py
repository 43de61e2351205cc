"""Entities to ask about, and the passages retrieved for each (paper section 3.1).

Retrieval is done once an entity and kept beside the index: a resumed run loads no model for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from medssr_dist.config import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.jsonl import JsonlLedger, read_jsonl
from medssr_dist.knowledge.corpus import HPO_PASSAGES, Passage, corpus_diseases, read_corpus
from medssr_dist.knowledge.encoders import Encoder, encoder_name, load_encoder
from medssr_dist.knowledge.index import index_dir, open_index
from medssr_dist.knowledge.splits import is_evaluation


@dataclass(frozen=True)
class Entity:
    """A rare disease that questions are asked about. Example: Entity("OMIM:203500", "Alkaptonuria")."""

    id: str
    name: str


def entities(knowledge: Knowledge, random_seed: int) -> list[Entity]:
    """The first `knowledge.entities` (0 = all) of a seeded shuffle of the rare diseases.

    Evaluation diseases are left out. With `hpo:passages` cut by a limit, only diseases whose own
    passage is in the corpus are used.

    Raises:
        InputError: fewer diseases than asked for.
    """
    limit = knowledge.corpus.limit if knowledge.corpus.path == HPO_PASSAGES else 0
    found = [Entity(disease.id, disease.name) for disease in corpus_diseases(limit) if not is_evaluation(disease)]
    if knowledge.entities > len(found):
        cure = f" or raise knowledge.corpus.limit={limit}" if limit else ""
        raise InputError(
            f"knowledge.entities={knowledge.entities}, but there are {len(found)} rare diseases to draw from; "
            f"ask for at most that many, set 0 for all{cure}"
        )
    random.Random(random_seed).shuffle(found)
    return found[: knowledge.entities or None]


class Retriever:
    """Finds the passages nearest to an entity's name. Corpus, encoder and index load when first needed."""

    def __init__(self, knowledge: Knowledge):
        self._knowledge = knowledge

    def top_k(self, entity: str) -> list[Passage]:
        """The `knowledge.top_k` best passages for `entity`, best first (all of them, in a smaller corpus)."""
        if entity not in self._known:
            passage_ids = self._search(entity)
            self._ledger.append({"entity": entity, "k": self._knowledge.top_k, "passage_ids": passage_ids})
            self._known[entity] = passage_ids
        return [self._passages[passage_id] for passage_id in self._known[entity]]

    def _search(self, entity: str) -> list[str]:
        vectors = self._encoder.encode_queries([entity])
        _, rows = self._index.search(vectors, min(self._knowledge.top_k, len(self._passages)))
        passage_ids = list(self._passages)
        return [passage_ids[row] for row in rows[0]]

    @cached_property
    def _passages(self) -> dict[str, Passage]:
        return {passage.id: passage for passage in read_corpus(self._knowledge.corpus)}

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._knowledge)

    @cached_property
    def _index(self):
        return open_index(list(self._passages.values()), encoder_name(self._knowledge), lambda: self._encoder)

    @cached_property
    def _ledger(self) -> JsonlLedger:
        """Past retrievals, beside the index that they were made from."""
        return JsonlLedger(index_dir(list(self._passages.values()), encoder_name(self._knowledge)) / "retrieval.jsonl")

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        rows = read_jsonl(self._ledger.path)
        return {row["entity"]: row["passage_ids"] for row in rows if row["k"] == self._knowledge.top_k}
