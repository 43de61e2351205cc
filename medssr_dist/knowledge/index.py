"""The index of a corpus: its vectors in shards, and one form of search. It is built once and cached.

cache/index/ID/             ID is a hash of corpus, encoder and shard size
    00000.npy ...           the vectors
    FORM/index.json         IndexFacts; the file exists only if the index is complete
    FORM/index.faiss        only for ivfpq: the other forms search the vectors themselves
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import hash_content, parse_record
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import hold_lock
from medssr_dist.knowledge.encoders import Encoder, identify_encoder, read_encoder_dimension
from medssr_dist.knowledge.passages import Corpus
from medssr_dist.knowledge.search import (
    CompressedIndex,
    ExactIndex,
    Index,
    build_ivfpq,
    check_ivfpq,
    count_ivf_lists,
    count_training_vectors,
    read_ivfpq,
)
from medssr_dist.knowledge.vectors import Vectors, encode_corpus
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.runtime.device import read_available_memory

logger = logging.getLogger(__name__)

FACTS_FILE = "index.json"
_RECALL_QUERIES = 200
_FLOAT = 4  # bytes of a float32
_SEARCH_BYTES = 150_000_000  # FAISS's blocks, one batch of queries and its results
_RESIDUALS = 2**16  # the most vectors that FAISS trains the codes on; two copies are in memory


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RecallSettings(_Frozen):
    """The search settings that recall depends on. Example: RecallSettings(k=3, probes=32, candidates=200)."""

    k: int = Field(description="passages searched for")
    probes: int | None = Field(None, description="ivfpq: lists searched per query")
    candidates: int | None = Field(None, description="ivfpq: passages whose exact score is computed")


class Recall(_Frozen):
    """Measured recall. Example: Recall(of=RecallSettings(k=3), queries=0, value=1.0)."""

    of: RecallSettings
    queries: int
    value: float = Field(description="share of the exact top k that was found, 0 to 1")


class IndexSource(_Frozen):
    """What an index was built from.

    Example: IndexSource(form="flat", count=10_000, dimension=768, corpus_hash="9f..", encoder="minilm",
    shard_size=100_000)
    """

    form: str = Field(description="flat, sharded_flat or ivfpq")
    count: int = Field(description="passages")
    dimension: int
    corpus_hash: str
    encoder: str
    shard_size: int


class IndexFacts(IndexSource):
    """The contents of index.json: the source of the index, and its memory and recall.

    Example: IndexFacts(**source.model_dump(), memory_bytes={"flat": 181_000_000, ...}, recall=Recall(...))
    """

    memory_bytes: dict[str, int] = Field(description="form -> peak memory in bytes")
    recall: Recall


@dataclass(frozen=True)
class _Cached:
    """An index from the cache, with its index.json."""

    index: Index
    facts: IndexFacts


def locate_index(corpus: Corpus, knowledge: Knowledge) -> Path:
    """Return the cache folder for this corpus, encoder and shard size."""
    return make_cache_dir() / "index" / hash_content([corpus.hash, identify_encoder(knowledge), knowledge.shard_size])


def locate_form(folder: Path, knowledge: Knowledge) -> Path:
    """Return the folder of the chosen form of index inside `folder`."""
    lists = knowledge.ivf_lists or "auto"
    ivfpq = f"ivfpq-{lists}-{knowledge.pq_bytes}"
    return folder / (ivfpq if knowledge.index == "ivfpq" else knowledge.index)


def count_passages_for_prompt(knowledge: Knowledge) -> int:
    """Return the number of passages that a prompt is made from: those for the reranker, or without one its own."""
    return knowledge.rerank_depth if knowledge.reranker else knowledge.top_k


def estimate_index_memory(knowledge: Knowledge, passages: int, dimension: int) -> dict[str, int]:
    """Return form -> peak memory in bytes, including the build, without the models."""
    vector = _FLOAT * dimension
    codes = passages * (knowledge.pq_bytes + 8)  # a code and a 64-bit row per passage
    lists = count_ivf_lists(knowledge, passages) * vector
    training = (count_training_vectors(knowledge, passages) + 2 * min(passages, _RESIDUALS)) * vector
    return {
        "flat": passages * vector + _SEARCH_BYTES,
        "sharded_flat": min(passages, knowledge.shard_size) * vector + _SEARCH_BYTES,
        "ivfpq": max(training, 2 * codes) + lists + _SEARCH_BYTES,  # a list that grows doubles its memory
    }


def refuse_large_index(knowledge: Knowledge, passages: int, dimension: int) -> None:
    """Raise InputError if the chosen form needs more memory than is free; the message names the forms that fit."""
    needed, available = estimate_index_memory(knowledge, passages, dimension), read_available_memory()
    if needed[knowledge.index] <= available:
        return
    fitting = [f"{form} ({needed[form] / 1e9:.2f} GB)" for form in needed if needed[form] <= available]
    fix = f"set knowledge.index={' or '.join(fitting)}" if fitting else "lower knowledge.shard_size or free some memory"
    raise InputError(
        f"knowledge.index={knowledge.index} needs {needed[knowledge.index] / 1e9:.2f} GB of memory for {passages:,} "
        f"vectors of {dimension}, {available / 1e9:.2f} GB are free; {fix}"
    )


def build_index(
    vectors: np.ndarray | Vectors,
    knowledge: Knowledge,
    folder: Path,
    queries: np.ndarray | None = None,
    corpus_hash: str = "",
) -> Index:
    """Build the chosen form of index over `vectors`, and write index.json with its memory and recall to `folder`.

    Args:
        vectors: float32 [n, d]; an array or memory map is searched in shards of `knowledge.shard_size`.
        queries: float32 [q, d], to measure recall with; by default up to 200 of the vectors.
        corpus_hash: hash of the corpus, stored in index.json.
    Raises:
        InputError: there is not enough memory, there are too few vectors, or pq_bytes does not divide d.
    """
    vectors = vectors if isinstance(vectors, Vectors) else Vectors.split(vectors, knowledge.shard_size)
    refuse_large_index(knowledge, len(vectors), vectors.dimension)
    needed = estimate_index_memory(knowledge, len(vectors), vectors.dimension)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_FILE).unlink(missing_ok=True)
    if knowledge.index == "ivfpq":
        build_ivfpq(vectors, knowledge, folder / "index.faiss")
    index = _load(vectors, knowledge, folder)
    source = _describe_source(corpus_hash, vectors, knowledge)
    recall = _measure_recall(index, vectors, knowledge, queries)
    _write_facts(folder, IndexFacts(**source.model_dump(), memory_bytes=needed, recall=recall))
    return index


def open_index(corpus: Corpus, knowledge: Knowledge, load: Callable[[], Encoder], names: Sequence[str] = ()) -> Index:
    """Return the index whose row i is passage i. If the cache has none that matches, encode the corpus and build it.

    Args:
        load: returns the encoder; called only if something has to be encoded.
        names: queries to measure recall with, of which up to 200 are used; by default passages.
    Raises:
        InputError: there is not enough memory; raised before anything is encoded.
    """
    folder = locate_index(corpus, knowledge)
    form = locate_form(folder, knowledge)
    with hold_lock(folder / "build"):
        is_built = (form / FACTS_FILE).exists()
        if not is_built or knowledge.index != "ivfpq":
            _check_resources(knowledge, len(corpus))
        vectors = encode_corpus(corpus, knowledge, folder, load)
        cached = _read_cached(form, vectors, knowledge, corpus.hash) if is_built else None
        if cached and cached.facts.recall.of == _choose_recall_settings(knowledge):
            return cached.index
        queries = _encode_sample(load(), names)
        if cached is None:
            return build_index(vectors, knowledge, form, queries, corpus.hash)
        recall = _measure_recall(cached.index, vectors, knowledge, queries)
        _write_facts(form, cached.facts.model_copy(update={"recall": recall}))
        return cached.index


def _check_resources(knowledge: Knowledge, passages: int) -> None:
    """Log what each form needs, and raise InputError now rather than after hours of encoding."""
    dimension = read_encoder_dimension(knowledge)
    needed = ", ".join(
        f"{form} {size / 1e9:.2f}" for form, size in estimate_index_memory(knowledge, passages, dimension).items()
    )
    disk = passages * dimension * _FLOAT / 1e9
    logger.info(
        "passage index: %s x %d vectors, %.2f GB on disk; memory in GB: %s", f"{passages:,}", dimension, disk, needed
    )
    refuse_large_index(knowledge, passages, dimension)
    if knowledge.index == "ivfpq":
        check_ivfpq(knowledge, passages, dimension)


def _describe_source(corpus_hash: str, vectors: Vectors, knowledge: Knowledge) -> IndexSource:
    return IndexSource(
        form=knowledge.index,
        count=len(vectors),
        dimension=vectors.dimension,
        corpus_hash=corpus_hash,
        encoder=identify_encoder(knowledge),
        shard_size=knowledge.shard_size,
    )


def _read_cached(folder: Path, vectors: Vectors, knowledge: Knowledge, corpus_hash: str) -> _Cached | None:
    """Return the cached index, or None, with a warning, if it is damaged or was built from something else."""
    expected = _describe_source(corpus_hash, vectors, knowledge)
    try:
        row = read_json(folder / FACTS_FILE)
        facts, source = parse_record(IndexFacts, row, FACTS_FILE), parse_record(IndexSource, row, FACTS_FILE)
        if source == expected:
            return _Cached(_load(vectors, knowledge, folder), facts)
        reason = f"it is of {source}, expected {expected}"
    except (RuntimeError, InputError) as error:
        reason = f"it cannot be read ({' '.join(str(error).split())[:200]})"
    logger.warning("index %s does not match its corpus: %s; building it again", folder, reason)
    return None


def _write_facts(folder: Path, facts: IndexFacts) -> None:
    write_json(folder / FACTS_FILE, facts.model_dump(exclude_none=True))


def _load(vectors: Vectors, knowledge: Knowledge, folder: Path) -> Index:
    if knowledge.index == "flat":
        return ExactIndex(vectors.load())
    if knowledge.index == "sharded_flat":
        return ExactIndex(vectors)
    return CompressedIndex(read_ivfpq(folder / "index.faiss", len(vectors)), vectors, knowledge)


def _encode_sample(encoder: Encoder, names: Sequence[str]) -> np.ndarray | None:
    chosen = random.Random(0).sample(list(names), min(_RECALL_QUERIES, len(names)))
    return encoder.encode_queries(chosen) if chosen else None


def _measure_recall(index: Index, vectors: Vectors, knowledge: Knowledge, queries: np.ndarray | None) -> Recall:
    """Return the share of the exact top k that the index finds, or 1, without a search, for the exact forms."""
    settings = _choose_recall_settings(knowledge)
    if knowledge.index != "ivfpq":
        return Recall(of=settings, queries=0, value=1.0)
    if queries is None:
        rows = np.random.default_rng(0).choice(len(vectors), min(_RECALL_QUERIES, len(vectors)), replace=False)
        queries = vectors.take(rows)
    k = min(settings.k, len(vectors))
    exact = ExactIndex(vectors).search(queries, k).rows
    found = index.search(queries, k).rows
    value = float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(exact, found, strict=True)]))
    logger.info("passage index: recall@%d %.3f against exact search, %d queries", k, value, len(queries))
    return Recall(of=settings, queries=len(queries), value=value)


def _choose_recall_settings(knowledge: Knowledge) -> RecallSettings:
    k = count_passages_for_prompt(knowledge)
    if knowledge.index != "ivfpq":
        return RecallSettings(k=k)
    return RecallSettings(k=k, probes=knowledge.ivf_probes, candidates=knowledge.candidates)
