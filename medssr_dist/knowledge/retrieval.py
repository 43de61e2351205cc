"""The entities of rare questions, and the passages retrieved for each of them (paper section 3.1).

The passages of an entity are retrieved once and stored next to the index, so a resumed run loads no model for them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock
from medssr_dist.knowledge.corpus import HPO_PASSAGES, list_corpus_diseases, read_corpus
from medssr_dist.knowledge.encoders import Encoder, identify_model, load_encoder
from medssr_dist.knowledge.index import count_searched_passages, locate_index, open_index
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.reranker import Reranker
from medssr_dist.knowledge.search import Index
from medssr_dist.knowledge.splits import is_evaluation

_SEARCHED_AT_ONCE = 4096  # entities; many, because sharded_flat reads all vectors for each batch
_RECORDED_AT_ONCE = 256  # entities; the most that a killed process loses
_PASSAGES_CACHED = 4096


Item = TypeVar("Item")


@dataclass(frozen=True)
class Entity:
    """A rare disease that questions are written about. Example: Entity("OMIM:203500", "Alkaptonuria")."""

    id: str
    name: str


def draw_entities(knowledge: Knowledge, random_seed: int) -> list[Entity]:
    """Return the first `knowledge.entities` (0 = all) of the rare diseases in a seeded random order.

    Evaluation diseases are left out. If `hpo:passages` has a limit, only diseases with a passage in the corpus are
    used.

    Raises:
        InputError: there are fewer diseases than `knowledge.entities`.
    """
    limit = knowledge.corpus.limit if knowledge.corpus.path == HPO_PASSAGES else 0
    found = [Entity(disease.id, disease.name) for disease in list_corpus_diseases(limit) if not is_evaluation(disease)]
    if knowledge.entities > len(found):
        fix = f" or raise knowledge.corpus.limit={limit}" if limit else ""
        raise InputError(
            f"knowledge.entities={knowledge.entities}, but there are {len(found)} rare diseases to draw from; "
            f"lower it to at most that number, set 0 for all{fix}"
        )
    random.Random(random_seed).shuffle(found)
    return found[: knowledge.entities or None]


class Retriever:
    """Finds the passages nearest to an entity's name. Corpus, encoder and index are loaded when first needed.

    Results are stored in a ledger next to the index, which several processes may share. If it contains all names
    (after `prepare`, or after `medssr prefetch` on another machine), neither torch nor FAISS is imported.
    """

    def __init__(self, knowledge: Knowledge):
        self._knowledge = knowledge
        self._index: Index | None = None
        self._passage = lru_cache(maxsize=_PASSAGES_CACHED)(lambda passage_id: self._corpus.by_id(passage_id))

    def prepare(self, names: Sequence[str]) -> None:
        """Find and record the passages of those `names` that are not recorded yet. A killed call can be repeated.

        Raises:
            InputError: a model is not on this machine, the index does not fit into memory, or the disk is full.
        """
        from tqdm import tqdm

        missing = self.list_missing(names)
        with tqdm(total=len(missing), desc="retrieve", unit="entity", disable=len(missing) < 2) as bar:
            for searched in _split_batches(missing, _SEARCHED_AT_ONCE):
                found = list(zip(searched, self._search(searched), strict=True))
                for batch in _split_batches(found, _RECORDED_AT_ONCE):
                    self._record({name: self._rank(name, rows) for name, rows in batch})
                    bar.update(len(batch))

    def list_missing(self, names: Sequence[str]) -> list[str]:
        """Return those of `names`, each once, whose passages are not recorded yet."""
        return [name for name in dict.fromkeys(names) if name not in self._known]

    def retrieve(self, entity: str) -> list[Passage]:
        """Return the `knowledge.top_k` best passages for `entity`, best first (all passages of a smaller corpus)."""
        if entity not in self._known:
            self.prepare([entity])
        return [self._passage(passage_id) for passage_id in self._known[entity]]

    def read_passage(self, passage_id: str) -> str:
        """Return title and content of a passage. Raises KeyError if the id is not in the corpus."""
        return self._passage(passage_id).text

    def _search(self, names: list[str]) -> list[list[int]]:
        """Return, for each name, the rows of the nearest passages, best first."""
        if self._index is None:
            self._index = open_index(self._corpus, self._knowledge, lambda: self._encoder, names)
        k = min(count_searched_passages(self._knowledge), len(self._corpus))
        _, rows = self._index.search(self._encoder.encode_queries(names), k)
        return [[row for row in found if row >= 0] for found in rows.tolist()]

    def _rank(self, name: str, rows: list[int]) -> list[str]:
        """Return the passage ids of `rows`, in the order of the reranker if there is one."""
        passages = [self._corpus[row] for row in rows]
        if self._knowledge.reranker:
            passages = self._reranker.rank(name, passages, self._knowledge.top_k)
        return [passage.id for passage in passages]

    def _record(self, found: dict[str, list[str]]) -> None:
        rows = [{"entity": name, "settings": self._settings, "passage_ids": ids} for name, ids in found.items()]
        with hold_lock(self._folder / "retrieval"), JsonlLedger(self._ledger) as ledger:
            ledger.append(*rows)
        self._known.update(found)

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        """Recorded passage ids by name, for these settings. Opening the ledger removes an incomplete last line."""
        with hold_lock(self._folder / "retrieval"), JsonlLedger(self._ledger):
            rows = [row for row in read_jsonl(self._ledger) if row["settings"] == self._settings]
        return {row["entity"]: row["passage_ids"] for row in rows}

    @cached_property
    def _settings(self) -> str:
        """Hash of everything that the result depends on, except corpus and encoder, which determine the folder."""
        knowledge = self._knowledge
        settings: list[str | int] = [knowledge.index, knowledge.top_k]
        if knowledge.index == "ivfpq":
            settings += [knowledge.ivf_lists, knowledge.ivf_probes, knowledge.pq_bytes, knowledge.candidates]
        if knowledge.reranker:
            settings += [identify_model(knowledge.reranker), knowledge.rerank_depth]
        return hash_content(settings)

    @cached_property
    def _folder(self) -> Path:
        return locate_index(self._corpus, self._knowledge)

    @property
    def _ledger(self) -> Path:
        return self._folder / "retrieval.jsonl"

    @cached_property
    def _corpus(self) -> Corpus:
        return read_corpus(self._knowledge.corpus)

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._knowledge)

    @cached_property
    def _reranker(self) -> Reranker:
        return Reranker(self._knowledge.reranker, self._knowledge.batch_size)


def _split_batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
