"""Entities to ask about, and the passages retrieved for each (paper section 3.1).

Retrieval is done once an entity and kept beside the index: a resumed run loads no model for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock
from medssr_dist.knowledge.corpus import HPO_PASSAGES, list_corpus_diseases, read_corpus
from medssr_dist.knowledge.encoders import Encoder, identify_model, load_encoder
from medssr_dist.knowledge.index import count_searched_passages, index_dir, open_index
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.reranker import Reranker
from medssr_dist.knowledge.search import Index
from medssr_dist.knowledge.splits import is_evaluation

_SEARCHED_AT_ONCE = 4096  # entities: large, as sharded_flat reads all vectors for each batch
_RECORDED_AT_ONCE = 256  # entities: what a kill may lose
_PASSAGES_KEPT = 4096


@dataclass(frozen=True)
class Entity:
    """A rare disease that questions are asked about. Example: Entity("OMIM:203500", "Alkaptonuria")."""

    id: str
    name: str


def draw_entities(knowledge: Knowledge, random_seed: int) -> list[Entity]:
    """The first `knowledge.entities` (0 = all) of a seeded shuffle of the rare diseases.

    Evaluation diseases are left out. With `hpo:passages` cut by a limit, only diseases whose own
    passage is in the corpus are used.

    Raises:
        InputError: fewer diseases than asked for.
    """
    limit = knowledge.corpus.limit if knowledge.corpus.path == HPO_PASSAGES else 0
    found = [Entity(disease.id, disease.name) for disease in list_corpus_diseases(limit) if not is_evaluation(disease)]
    if knowledge.entities > len(found):
        cure = f" or raise knowledge.corpus.limit={limit}" if limit else ""
        raise InputError(
            f"knowledge.entities={knowledge.entities}, but there are {len(found)} rare diseases to draw from; "
            f"ask for at most that many, set 0 for all{cure}"
        )
    random.Random(random_seed).shuffle(found)
    return found[: knowledge.entities or None]


class Retriever:
    """Finds the passages nearest to an entity's name. Corpus, encoder and index load when first needed.

    What is found is kept in a ledger beside the index, which processes may share. Once all names are in it
    (`prepare`, or `medssr prefetch` on another machine), neither torch nor FAISS is imported.
    """

    def __init__(self, knowledge: Knowledge):
        self._knowledge = knowledge
        self._index: Index | None = None
        self._passage = lru_cache(maxsize=_PASSAGES_KEPT)(lambda passage_id: self._corpus.by_id(passage_id))

    def prepare(self, names: Sequence[str]) -> None:
        """Find and record the passages of all `names` that are not known yet; a killed call is resumed.

        Raises:
            InputError: a model is not on this machine, not enough memory for the index, a full disk.
        """
        from tqdm import tqdm

        missing = self.list_missing(names)
        with tqdm(total=len(missing), desc="retrieve", unit="entity", disable=len(missing) < 2) as bar:
            for searched in _batches(missing, _SEARCHED_AT_ONCE):
                found = list(zip(searched, self._search(searched), strict=True))
                for batch in _batches(found, _RECORDED_AT_ONCE):
                    self._record({name: self._ranked(name, rows) for name, rows in batch})
                    bar.update(len(batch))

    def list_missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names`, each once, whose passages were not recorded yet."""
        return [name for name in dict.fromkeys(names) if name not in self._known]

    def retrieve(self, entity: str) -> list[Passage]:
        """The `knowledge.top_k` best passages for `entity`, best first (all of them, in a smaller corpus)."""
        if entity not in self._known:
            self.prepare([entity])
        return [self._passage(passage_id) for passage_id in self._known[entity]]

    def read_passage(self, passage_id: str) -> str:
        """Title and content of a passage. Raises KeyError for an id that is not in the corpus."""
        return self._passage(passage_id).text

    def _search(self, names: list[str]) -> list[list[int]]:
        """For each name the rows of the passages nearest to it, best first."""
        if self._index is None:
            self._index = open_index(self._corpus, self._knowledge, lambda: self._encoder, names)
        k = min(count_searched_passages(self._knowledge), len(self._corpus))
        _, rows = self._index.search(self._encoder.encode_queries(names), k)
        return [[row for row in found if row >= 0] for found in rows.tolist()]

    def _ranked(self, name: str, rows: list[int]) -> list[str]:
        """Passage ids, ranked again where there is a reranker."""
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
        """Past retrievals under these settings. Opening the ledger cuts off what a killed writer left half."""
        with hold_lock(self._folder / "retrieval"), JsonlLedger(self._ledger):
            rows = [row for row in read_jsonl(self._ledger) if row["settings"] == self._settings]
        return {row["entity"]: row["passage_ids"] for row in rows}

    @cached_property
    def _settings(self) -> str:
        """All that a retrieval depends on, beside the corpus and the encoder that the folder is for."""
        knowledge, settings = self._knowledge, [self._knowledge.index, self._knowledge.top_k]
        if knowledge.index == "ivfpq":
            settings += [knowledge.ivf_lists, knowledge.ivf_probes, knowledge.pq_bytes, knowledge.candidates]
        if knowledge.reranker:
            settings += [identify_model(knowledge.reranker), knowledge.rerank_depth]
        return hash_content(settings)

    @cached_property
    def _folder(self) -> Path:
        return index_dir(self._corpus, self._knowledge)

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


def _batches(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))
