"""The passages retrieved for each entity (paper section 3.1), from one or several corpora.

A search takes the nearest `search_depth` passages of each corpus. With `must_name_entity`, those that do not name the
disease, in title or text, are dropped, and the next ones take their places. Each corpus has its share of the top_k
passages reserved, rounded down; the other places go to the best passages of all corpora, by score or by the reranker.
What is found is recorded in a ledger in the cache, so a resumed run loads no model for it.

cache/retrieval/ID/retrieval.jsonl     ID is a hash of corpora and encoder
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.checksums import warn_of_damage
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import hash_content, parse_record
from medssr_dist.knowledge.cache_files import hold_lock
from medssr_dist.knowledge.corpus import NamedCorpus, find_passage, open_corpora
from medssr_dist.knowledge.encoders import Encoder, identify_encoder, identify_model, load_encoder
from medssr_dist.knowledge.entities import Entity
from medssr_dist.knowledge.index import count_passages_for_prompt, locate_index, open_index
from medssr_dist.knowledge.name_finder import find_name
from medssr_dist.knowledge.passages import Passage
from medssr_dist.knowledge.reranker import Reranker
from medssr_dist.knowledge.search import Hits, Index
from medssr_dist.runtime.cache import make_cache_dir

logger = logging.getLogger(__name__)

_SEARCHED_AT_ONCE = 4096  # entities; many, because sharded_flat reads all vectors for each batch
_RECORDED_AT_ONCE = 256  # entities; the most that a killed process loses
_PASSAGES_CACHED = 4096

Item = TypeVar("Item")


@dataclass(frozen=True)
class _LedgerRow:
    """A line of retrieval.jsonl: the fields of FoundPassages, the entity's name, and the settings of the search."""

    entity: str
    settings: str
    names: str
    passage_ids: tuple[str, ...]
    unnamed: int


@dataclass(frozen=True)
class FoundPassages:
    """The passages found for an entity, as the ledger records them.

    Attributes:
        names: hash of the entity's name and synonyms, by which passages were checked.
        passage_ids: best first; fewer than top_k if not enough passages name the entity.
        unnamed: of the nearest top_k passages of all corpora, those that do not name the entity.

    Example: FoundPassages("9f0c", ("hpo:ORPHA:56/course", "hpo:ORPHA:56/genes"), unnamed=1)
    """

    names: str
    passage_ids: tuple[str, ...]
    unnamed: int


@dataclass(frozen=True)
class RetrievalCounts:
    """What retrieval found for the entities of a run.

    Attributes:
        unnamed: of the `nearest` passages, those that do not name their entity.
        short: entities with at least one passage, but fewer than top_k.
        without: entities with no passage.

    Example: RetrievalCounts(entities=200, nearest=600, unnamed=73, short=12, without=3)
    """

    entities: int
    nearest: int
    unnamed: int
    short: int
    without: int


class Retriever:
    """Finds the passages about an entity. Corpora, encoder and indexes are loaded when first needed.

    Several processes may share the ledger. If it contains all entities (after `prepare`, or after `medssr prefetch` on
    another machine), neither torch nor FAISS is imported.
    """

    def __init__(self, knowledge: Knowledge):
        self._knowledge = knowledge
        self._read = lru_cache(maxsize=_PASSAGES_CACHED)(lambda passage_id: find_passage(self._corpora, passage_id))

    def prepare(self, entities: Sequence[Entity]) -> None:
        """Find and record the passages of those `entities` that are not recorded yet. A killed call can be repeated.

        Raises:
            InputError: a model is not on this machine, an index does not fit into memory, or the disk is full.
        """
        from medssr_dist.runtime.progress_bar import ProgressBar

        missing = self.list_missing(entities)
        with ProgressBar(total=len(missing), desc="retrieve", unit="entity", disable=len(missing) < 2) as bar:
            for searched in _split_batches(missing, _SEARCHED_AT_ONCE):
                hits = self._search([entity.name for entity in searched])
                for batch in _split_batches(list(enumerate(searched)), _RECORDED_AT_ONCE):
                    self._record({entity.name: self._choose(entity, hits, number) for number, entity in batch})
                    bar.update(len(batch))

    def list_missing(self, entities: Sequence[Entity]) -> list[Entity]:
        """Return those of `entities`, each once, whose passages are not recorded yet."""
        once = {entity.name: entity for entity in entities}.values()
        return [entity for entity in once if not self._is_known(entity)]

    def keep_covered(self, entities: Iterable[Entity]) -> list[Entity]:
        """Return the entities that have a passage, of those that are recorded, and all others."""
        return [one for one in entities if one.name not in self._known or self._known[one.name].passage_ids]

    def count(self, entities: Iterable[Entity]) -> RetrievalCounts:
        """Count what was found for recorded `entities`, and warn of passages that do not name their entity."""
        found = [self._known[entity.name] for entity in entities]
        sizes = [len(one.passage_ids) for one in found]
        counts = RetrievalCounts(
            entities=len(found),
            nearest=len(found) * self._knowledge.top_k,
            unnamed=sum(one.unnamed for one in found),
            short=sum(0 < size < self._knowledge.top_k for size in sizes),
            without=sizes.count(0),
        )
        _warn_of_unnamed(counts, self._knowledge)
        return counts

    def retrieve(self, name: str) -> list[Passage]:
        """Return the passages for the entity with this name, best first: at most `knowledge.top_k`."""
        if name not in self._known:
            self.prepare([Entity(name, name)])
        return [self._read(passage_id) for passage_id in self._known[name].passage_ids]

    def read_passage(self, passage_id: str) -> str:
        """Return title and content of a passage. Raises KeyError if the id is not in the corpora."""
        return self._read(passage_id).text

    def list_index_folders(self) -> list[Path]:
        """Return the folders of the indexes, one for each corpus."""
        return [locate_index(corpus.passages, self._knowledge) for corpus in self._corpora]

    def _is_known(self, entity: Entity) -> bool:
        return entity.name in self._known and self._known[entity.name].names == _hash_names(entity)

    def _search(self, names: list[str]) -> list[Hits]:
        """Return the nearest passages of each corpus for all names, best first."""
        if not self._indexes:
            for corpus in self._corpora:
                self._indexes.append(open_index(corpus.passages, self._knowledge, lambda: self._encoder, names))
        queries = self._encoder.encode_queries(names)
        return [
            index.search(queries, min(self._depth, len(corpus.passages)))
            for index, corpus in zip(self._indexes, self._corpora, strict=True)
        ]

    @property
    def _depth(self) -> int:
        """The number of passages to search for in each corpus."""
        wanted = count_passages_for_prompt(self._knowledge)
        return max(wanted, self._knowledge.search_depth) if self._knowledge.must_name_entity else wanted

    def _choose(self, entity: Entity, hits: list[Hits], number: int) -> FoundPassages:
        """Return the passages for entity `number` of a search."""
        knowledge, candidates = self._knowledge, _Candidates(entity)
        nearest: list[_Hit] = []
        kept: list[_Hit] = []
        for corpus, found in zip(self._corpora, hits, strict=True):
            own = [
                _Hit(corpus, int(row), float(score))
                for score, row in zip(found.scores[number], found.rows[number], strict=True)
                if row >= 0
            ]
            nearest += own[: knowledge.top_k]
            kept += candidates.take(own, count_passages_for_prompt(knowledge), knowledge.must_name_entity)
        nearest = _share_places(sorted(nearest, key=_by_score), knowledge.top_k)
        chosen = _share_places(self._rank(entity, sorted(kept, key=_by_score), candidates), knowledge.top_k)
        return FoundPassages(
            names=_hash_names(entity),
            passage_ids=tuple(candidates.read(hit).id for hit in chosen),
            unnamed=sum(not candidates.is_named(hit) for hit in nearest),
        )

    def _rank(self, entity: Entity, hits: list[_Hit], candidates: _Candidates) -> list[_Hit]:
        """Return `hits` in the order of the reranker, if there is one."""
        if not self._knowledge.reranker or not hits:
            return hits
        by_id = {candidates.read(hit).id: hit for hit in hits}
        ranked = self._reranker.rank(entity.name, [candidates.read(hit) for hit in hits], len(hits))
        return [by_id[passage.id] for passage in ranked]

    def _record(self, found: dict[str, FoundPassages]) -> None:
        rows = [
            {"entity": name, "settings": self._settings, "names": one.names, "passage_ids": list(one.passage_ids)}
            | {"unnamed": one.unnamed}
            for name, one in found.items()
        ]
        with hold_lock(self._ledger), JsonlLedger(self._ledger) as ledger:
            ledger.append(*rows)
        self._known.update(found)

    @cached_property
    def _known(self) -> dict[str, FoundPassages]:
        """Recorded passages by name, for these settings. Opening the ledger removes an incomplete last line."""
        with hold_lock(self._ledger), JsonlLedger(self._ledger):
            rows = read_jsonl(self._ledger, warn_of_damage)
            records = [parse_record(_LedgerRow, row, str(self._ledger)) for row in rows]
        found = [row for row in records if row.settings == self._settings]
        return {row.entity: FoundPassages(row.names, row.passage_ids, row.unnamed) for row in found}

    @cached_property
    def _settings(self) -> str:
        """Hash of everything that the result depends on, except corpora and encoder, which determine the folder."""
        knowledge = self._knowledge
        settings: list[str | int] = [knowledge.index, knowledge.top_k]
        if knowledge.must_name_entity:
            settings.append(f"named within {knowledge.search_depth}")
        if knowledge.index == "ivfpq":
            settings += [knowledge.ivf_lists, knowledge.ivf_probes, knowledge.pq_bytes, knowledge.candidates]
        if knowledge.reranker:
            settings += [identify_model(knowledge.reranker), knowledge.rerank_depth]
        return hash_content(settings)

    @cached_property
    def _ledger(self) -> Path:
        corpora = [[corpus.name, corpus.passages.hash, corpus.share] for corpus in self._corpora]
        folder = hash_content([corpora, identify_encoder(self._knowledge), self._knowledge.shard_size])
        return make_cache_dir() / "retrieval" / folder / "retrieval.jsonl"

    @cached_property
    def _corpora(self) -> list[NamedCorpus]:
        return open_corpora(self._knowledge)

    @cached_property
    def _indexes(self) -> list[Index]:
        return []

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._knowledge)

    @cached_property
    def _reranker(self) -> Reranker:
        return Reranker(self._knowledge.reranker, self._knowledge.batch_size)


class _Hit(NamedTuple):
    """A passage that was found, by corpus and row, with its score."""

    corpus: NamedCorpus
    row: int
    score: float


def _by_score(hit: _Hit) -> float:
    return -hit.score


@dataclass
class _Candidates:
    """The passages found for one entity: each is read, and searched for the entity's name, at most once."""

    entity: Entity
    _read: dict[tuple[str, int], Passage] = field(default_factory=dict)
    _named: dict[str, bool] = field(default_factory=dict)

    def read(self, hit: _Hit) -> Passage:
        key = (hit.corpus.name, hit.row)
        if key not in self._read:
            self._read[key] = hit.corpus.read(hit.row)
        return self._read[key]

    def is_named(self, hit: _Hit) -> bool:
        """Return whether title or text has the entity's name, or a synonym that is no acronym."""
        passage = self.read(hit)
        if passage.id not in self._named:
            own = find_name(passage.text, (self.entity.name,))
            self._named[passage.id] = bool(own or find_name(passage.text, self.entity.synonyms, acronyms=False))
        return self._named[passage.id]

    def take(self, hits: list[_Hit], wanted: int, must_name: bool) -> list[_Hit]:
        """Return the first `wanted` of `hits`, or of those that name the entity."""
        kept: list[_Hit] = []
        for hit in hits:
            if len(kept) == wanted:
                break
            if not must_name or self.is_named(hit):
                kept.append(hit)
        return kept


def _share_places(hits: list[_Hit], places: int) -> list[_Hit]:
    """Return the best `places` hits, in their order, after each corpus has got the places reserved for it."""
    reserved: list[_Hit] = []
    for corpus in {hit.corpus.name: hit.corpus for hit in hits}.values():
        own = [hit for hit in hits if hit.corpus.name == corpus.name]
        reserved += own[: int(corpus.share * places + 1e-9)]
    others = [hit for hit in hits if hit not in reserved]
    chosen = reserved + others[: max(0, places - len(reserved))]
    return [hit for hit in hits if hit in chosen]


def _hash_names(entity: Entity) -> str:
    return hash_content([entity.name, *entity.synonyms], 8)


def _warn_of_unnamed(counts: RetrievalCounts, knowledge: Knowledge) -> None:
    if counts.unnamed:
        done = (
            f"passages that do took their places (searched: the nearest {knowledge.search_depth} of each corpus)"
            if knowledge.must_name_entity
            else "they stay, because knowledge.must_name_entity is false"
        )
        logger.warning(
            "%s of the %s nearest passages do not name their disease; %s",
            f"{counts.unnamed:,}",
            f"{counts.nearest:,}",
            done,
        )
    if counts.without:
        logger.warning(
            "%s of %s diseases are named by no passage that was found; no questions are written about them",
            *(f"{counts.without:,}", f"{counts.entities:,}"),
        )
    if counts.short:
        logger.info("%s diseases have fewer than %d passages", f"{counts.short:,}", knowledge.top_k)


def _split_batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
