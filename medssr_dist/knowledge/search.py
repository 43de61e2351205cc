"""Exact and compressed inner-product search over the vectors of a corpus, with FAISS.

The metric is passed to every FAISS call and constructor. Setting it on a finished index would leave the coarse
quantizer at L2, and recall would be silently too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import replace_file
from medssr_dist.knowledge.vectors import Vectors

if TYPE_CHECKING:
    import faiss

_RERANKED_AT_ONCE = 2**14  # vectors read at once for exact scores: 50 MB at 768 dimensions
_TRAINING_PER_LIST = 64  # training vectors per list for k-means; FAISS recommends 39 to 256
_PQ_CENTROIDS = 256  # 8 bits per code


class Hits(NamedTuple):
    """The k best vectors for each of n queries, best first, equal scores by row.

    Where fewer than k were found, the row is -1 and the score -inf. Example for n = 1, k = 3:
    Hits(scores=[[0.9, 0.4, -inf]], rows=[[17, 3, -1]])

    Attributes:
        scores: inner products, float32 [n, k].
        rows: rows of the vectors, int64 [n, k].
    """

    scores: np.ndarray
    rows: np.ndarray


class Index(Protocol):
    """Finds the vectors with the largest inner product."""

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the k best vectors for queries [n, d]."""


class ExactIndex:
    """Brute-force search, shard by shard with a top-k merge, so that only one shard needs to be in memory.

    A shard is searched on the GPU if FAISS is installed for GPU.
    """

    def __init__(self, vectors: Vectors):
        self._vectors = vectors

    def search(self, queries: np.ndarray, k: int) -> Hits:
        from medssr_dist.runtime.progress_bar import ProgressBar

        best = Hits(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1))
        for start, shard in ProgressBar(self._vectors, "search", self._vectors.shard_count, leave=False, disable=None):
            scores, rows = _search_shard(queries, shard, min(k, len(shard)))
            rows = np.where(rows >= 0, rows + start, -1)
            best = _select_best(np.hstack([best.scores, scores]), np.hstack([best.rows, rows]), k)
        return best


def _search_shard(queries: np.ndarray, vectors: np.ndarray, k: int) -> Hits:
    import faiss

    if gpu := _find_gpu():
        return Hits(*faiss.knn_gpu(gpu, queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT))
    return Hits(*faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT))


@lru_cache(maxsize=1)
def _find_gpu() -> faiss.StandardGpuResources | None:
    """Return FAISS's resources on the first GPU, or None if FAISS is not installed for GPU."""
    import faiss

    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None


def _select_best(scores: np.ndarray, rows: np.ndarray, k: int) -> Hits:
    """Return the k best of each line of scores [n, m] and rows [n, m]; rows of -1 come last."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return Hits(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))


class CompressedIndex:
    """Inverted lists of product-quantized vectors (IVF-PQ), whose candidates are ranked by their exact scores.

    Source: Jegou et al. 2011, Product quantization for nearest neighbor search.
    """

    def __init__(self, index: faiss.IndexIVFPQ, vectors: Vectors, knowledge: Knowledge):
        index.nprobe = min(knowledge.ivf_probes, index.nlist)
        self._index, self._vectors, self._candidates = _move_to_gpu(index), vectors, knowledge.candidates

    def search(self, queries: np.ndarray, k: int) -> Hits:
        _, rows = self._index.search(queries, min(max(self._candidates, k), len(self._vectors)))
        scores = np.full(rows.shape, -np.inf, np.float32)
        step = max(1, _RERANKED_AT_ONCE // rows.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scores[part] = self._compute_scores(queries[part], rows[part])
        return _select_best(scores, rows, k)

    def _compute_scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the inner products [n, c] of queries [n, d] with the vectors of rows [n, c]."""
        unique, places = np.unique(np.maximum(rows, 0), return_inverse=True)
        vectors = self._vectors.take(unique)[places.reshape(rows.shape)]
        return np.where(rows >= 0, (vectors @ queries[:, :, None])[:, :, 0], -np.inf)


def _move_to_gpu(index: faiss.Index) -> faiss.Index:
    import faiss

    gpu = _find_gpu()
    return faiss.index_cpu_to_gpu(gpu, 0, index) if gpu else index


def count_ivf_lists(knowledge: Knowledge, passages: int) -> int:
    """Return the number of inverted lists for `passages` passages."""
    return knowledge.ivf_lists or max(1, round(4 * math.sqrt(passages)))


def count_training_vectors(knowledge: Knowledge, passages: int) -> int:
    """Return the number of vectors that the inverted lists and the codes are trained on."""
    return min(passages, _TRAINING_PER_LIST * max(count_ivf_lists(knowledge, passages), _PQ_CENTROIDS))


def check_ivfpq(knowledge: Knowledge, passages: int, dimension: int) -> None:
    """Raise InputError if `pq_bytes` does not divide the dimension, or there are too few passages to train on."""
    if dimension % knowledge.pq_bytes:
        raise InputError(f"knowledge.pq_bytes = {knowledge.pq_bytes} does not divide the dimension {dimension}")
    least = max(count_ivf_lists(knowledge, passages), _PQ_CENTROIDS)
    if passages < least:
        raise InputError(f"knowledge.index=ivfpq needs at least {least:,} passages, there are {passages:,}; use flat")


def build_ivfpq(vectors: Vectors, knowledge: Knowledge, file: Path) -> None:
    """Train lists and codes on a seeded sample, add all vectors, and write the index to `file`."""
    import faiss

    from medssr_dist.runtime.progress_bar import ProgressBar

    check_ivfpq(knowledge, len(vectors), vectors.dimension)
    quantizer = faiss.IndexFlatIP(vectors.dimension)
    lists = count_ivf_lists(knowledge, len(vectors))
    index = faiss.IndexIVFPQ(quantizer, vectors.dimension, lists, knowledge.pq_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    count = count_training_vectors(knowledge, len(vectors))
    index.train(vectors.take(np.random.default_rng(0).choice(len(vectors), count, replace=False)))
    with ProgressBar(total=len(vectors), desc="index", unit="vector") as bar:
        for part in _split_shards(vectors):
            index.add(part)
            bar.update(len(part))
    with replace_file(file) as temporary, open(temporary, "wb") as handle:
        faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))


def _split_shards(vectors: Vectors, size: int = 2**15) -> Iterator[np.ndarray]:
    """Yield slices of the shards, because FAISS computes the residuals of all vectors of one call at once."""
    for _, shard in vectors:
        for start in range(0, len(shard), size):
            yield shard[start : start + size]


def read_ivfpq(file: Path, count: int) -> faiss.IndexIVFPQ:
    """Read the index in `file`. Raises RuntimeError if FAISS cannot read it or it does not have `count` vectors."""
    import faiss

    index = faiss.read_index(str(file))
    if index.ntotal != count:
        raise RuntimeError(f"{file.name} has {index.ntotal} vectors, not {count}")
    return index
