"""The index over a corpus: vectors in shards and a form of search, built once, cached, checked against what made it.

cache/index/ID/             ID: corpus, encoder, shard size
    00000.npy ...           the vectors
    FORM/index.json         what it was made of, the memory it needs, its recall; its presence says that it is whole
    FORM/index.faiss        ivfpq only: the other forms search the vectors themselves
    retrieval.jsonl         what was found for each entity (see retrieval.py)
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import hash_content
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

_log = logging.getLogger(__name__)

_RECALL_QUERIES = 200
_FLOAT = 4  # bytes
_SEARCH_BYTES = 150_000_000  # FAISS's blocks, a batch of queries and its results
_RESIDUALS = 2**16  # what FAISS learns codes from at most; held twice


def index_dir(corpus: Corpus, knowledge: Knowledge) -> Path:
    """Where all that is made from this corpus under this encoder is cached."""
    return make_cache_dir() / "index" / hash_content([corpus.hash, identify_encoder(knowledge), knowledge.shard_size])


def form_dir(folder: Path, knowledge: Knowledge) -> Path:
    """Where `folder` keeps the chosen form."""
    lists = knowledge.ivf_lists or "auto"
    ivfpq = f"ivfpq-{lists}-{knowledge.pq_bytes}"
    return folder / (ivfpq if knowledge.index == "ivfpq" else knowledge.index)


def count_searched_passages(knowledge: Knowledge) -> int:
    """How many passages the index is asked for: those that a reranker ranks again, else those injected."""
    return knowledge.rerank_depth if knowledge.reranker else knowledge.top_k


def estimate_index_memory(knowledge: Knowledge, passages: int, dimension: int) -> dict[str, int]:
    """Bytes of memory that each form needs at its peak, building included; the models are not counted."""
    vector = _FLOAT * dimension
    codes = passages * (knowledge.pq_bytes + 8)  # a code and a 64-bit row each
    lists = count_ivf_lists(knowledge, passages) * vector
    training = (count_training_vectors(knowledge, passages) + 2 * min(passages, _RESIDUALS)) * vector
    return {
        "flat": passages * vector + _SEARCH_BYTES,
        "sharded_flat": min(passages, knowledge.shard_size) * vector + _SEARCH_BYTES,
        "ivfpq": max(training, 2 * codes) + lists + _SEARCH_BYTES,  # a list doubles its room as it grows
    }


def refuse_large_index(knowledge: Knowledge, passages: int, dimension: int) -> None:
    """Raise InputError, with the forms that would fit, where the chosen form needs more than is free."""
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
    made_of: dict | None = None,
) -> Index:
    """Build the chosen form over `vectors` in `folder`, and write index.json with its memory and recall.

    Args:
        vectors: [n, d] float32; an array or memory map is searched in shards of knowledge.shard_size.
        queries: [q, d] that recall is measured on; up to 200 of the vectors where none are given.
        made_of: facts by which index.json is known again.
    Raises:
        InputError: not enough memory, too few vectors, pq_bytes that does not divide d.
    """
    vectors = vectors if isinstance(vectors, Vectors) else Vectors.split(vectors, knowledge.shard_size)
    refuse_large_index(knowledge, len(vectors), vectors.dimension)
    needed = estimate_index_memory(knowledge, len(vectors), vectors.dimension)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    if knowledge.index == "ivfpq":
        build_ivfpq(vectors, knowledge, folder / "index.faiss")
    index = _load(vectors, knowledge, folder)
    facts = {"form": knowledge.index, "count": len(vectors), "dimension": vectors.dimension, "memory_bytes": needed}
    recall = _recall(index, vectors, knowledge, queries)
    write_json(folder / "index.json", facts | (made_of or {}) | {"recall": recall})
    return index


def open_index(corpus: Corpus, knowledge: Knowledge, load: Callable[[], Encoder], names: Sequence[str] = ()) -> Index:
    """The index whose row i is passage i: the cached one if it fits, else encoded (or resumed) and built.

    Args:
        load: gives the encoder; called only when something has to be encoded.
        names: queries that recall is measured on, up to 200 of them; passages where none are given.
    Raises:
        InputError: not enough memory; said before anything is encoded.
    """
    folder = index_dir(corpus, knowledge)
    form = form_dir(folder, knowledge)
    made_of = {"corpus_hash": corpus.hash, "encoder": identify_encoder(knowledge), "shard_size": knowledge.shard_size}
    with hold_lock(folder / "build"):
        built = (form / "index.json").exists()
        if not built or knowledge.index != "ivfpq":
            _predict(knowledge, len(corpus))
        vectors = encode_corpus(corpus, knowledge, folder, load)
        index = _read(form, vectors, knowledge, made_of) if built else None
        if index and read_json(form / "index.json")["recall"]["of"] == _recall_settings(knowledge):
            return index
        queries = _sample(load(), names)
        if index is None:
            return build_index(vectors, knowledge, form, queries, made_of)
        recall = _recall(index, vectors, knowledge, queries)
        write_json(form / "index.json", read_json(form / "index.json") | {"recall": recall})
        return index


def _predict(knowledge: Knowledge, passages: int) -> None:
    """Show what each form needs, and refuse before hours of encoding what would be refused after it."""
    dimension = read_encoder_dimension(knowledge)
    needed = ", ".join(
        f"{form} {size / 1e9:.2f}" for form, size in estimate_index_memory(knowledge, passages, dimension).items()
    )
    disk = passages * dimension * _FLOAT / 1e9
    _say(f"{passages:,} x {dimension} vectors, {disk:.2f} GB on disk; memory in GB: {needed}")
    refuse_large_index(knowledge, passages, dimension)
    if knowledge.index == "ivfpq":
        check_ivfpq(knowledge, passages, dimension)


def _read(folder: Path, vectors: Vectors, knowledge: Knowledge, made_of: dict) -> Index | None:
    """The cached index, or None if it does not fit what it should be made of; that is reported."""
    expected = made_of | {"form": knowledge.index, "count": len(vectors), "dimension": vectors.dimension}
    try:
        stated = read_json(folder / "index.json")
        if {key: stated.get(key) for key in expected} == expected and "recall" in stated:
            return _load(vectors, knowledge, folder)
        reason = f"it states {stated}, expected {expected}"
    except (RuntimeError, InputError, AttributeError) as error:
        reason = f"it cannot be read ({' '.join(str(error).split())[:200]})"
    _log.warning("index %s does not match its corpus: %s; building it again", folder, reason)
    return None


def _load(vectors: Vectors, knowledge: Knowledge, folder: Path) -> Index:
    if knowledge.index == "flat":
        return ExactIndex(vectors.in_memory())
    if knowledge.index == "sharded_flat":
        return ExactIndex(vectors)
    return CompressedIndex(read_ivfpq(folder / "index.faiss", len(vectors)), vectors, knowledge)


def _sample(encoder: Encoder, names: Sequence[str]) -> np.ndarray | None:
    chosen = random.Random(0).sample(list(names), min(_RECALL_QUERIES, len(names)))
    return encoder.encode_queries(chosen) if chosen else None


def _recall(index: Index, vectors: Vectors, knowledge: Knowledge, queries: np.ndarray | None) -> dict:
    """Share of the exact top k that the index finds, over the queries; 1 without a search for an exact form."""
    settings = _recall_settings(knowledge)
    if knowledge.index != "ivfpq":
        return {"of": settings, "queries": 0, "value": 1.0}
    if queries is None:
        rows = np.random.default_rng(0).choice(len(vectors), min(_RECALL_QUERIES, len(vectors)), replace=False)
        queries = vectors.take(rows)
    k = min(settings["k"], len(vectors))
    _, exact = ExactIndex(vectors).search(queries, k)
    _, found = index.search(queries, k)
    value = float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(exact, found, strict=True)]))
    _say(f"recall@{k} {value:.3f} against exact search, {len(queries)} queries")
    return {"of": settings, "queries": len(queries), "value": value}


def _recall_settings(knowledge: Knowledge) -> dict[str, int]:
    """What recall depends on, beside what the index is made of."""
    ivfpq = {"probes": knowledge.ivf_probes, "candidates": knowledge.candidates} if knowledge.index == "ivfpq" else {}
    return {"k": count_searched_passages(knowledge), **ivfpq}


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"passage index: {text}", file=sys.stderr)
