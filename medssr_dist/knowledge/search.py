"""Exact and compressed inner-product search over a corpus' vectors, with FAISS.

The metric is given to each FAISS call and constructor. Set on an index afterwards it would leave the coarse
quantizer and the graph on L2, and recall would be silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.cache_files import replace_file
from medssr_dist.knowledge.vectors import Vectors

if TYPE_CHECKING:
    import faiss

_RERANKED_AT_ONCE = 2**14  # vectors gathered for the exact re-rank: 50 MB at 768 dimensions
_TRAINING_PER_LIST = 64  # vectors a list that k-means learns from; FAISS asks for 39 to 256
_PQ_CENTROIDS = 256  # 8 bits


class Index(Protocol):
    """Finds the vectors with the largest inner product."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, k] float32 and rows [n, k] int64 of queries [n, d], best first, equal scores by row.

        Row -1, score -inf where fewer than k were found.
        """


class ExactIndex:
    """Brute force, shard by shard with a top-k merge, so that only a shard needs to be in memory.

    With FAISS for GPU a shard is searched there.
    """

    def __init__(self, vectors: Vectors):
        self._vectors = vectors

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        from tqdm import tqdm

        best = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        for start, shard in tqdm(self._vectors, "search", self._vectors.shards, leave=False, disable=None):
            scores, rows = _knn(queries, shard, min(k, len(shard)))
            rows = np.where(rows >= 0, rows + start, -1)
            best = _best(np.hstack([best[0], scores]), np.hstack([best[1], rows]), k)
        return best


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    if gpu := _gpu():
        return faiss.knn_gpu(gpu, queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


@lru_cache(maxsize=1)
def _gpu() -> faiss.StandardGpuResources | None:
    """FAISS's own memory on the first GPU; None without FAISS for GPU."""
    import faiss

    return faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line, best first, equal scores by row; -1 rows come last."""
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


class CompressedIndex:
    """Inverted lists of product-quantized vectors (IVF-PQ); its candidates are ranked by their exact vectors.

    Source: Jegou et al. 2011, Product quantization for nearest neighbor search.
    """

    def __init__(self, index: faiss.IndexIVFPQ, vectors: Vectors, knowledge: Knowledge):
        index.nprobe = min(knowledge.ivf_probes, index.nlist)
        self._index, self._vectors, self._candidates = _on_gpu(index), vectors, knowledge.candidates

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        _, rows = self._index.search(queries, min(max(self._candidates, k), len(self._vectors)))
        scores = np.full(rows.shape, -np.inf, np.float32)
        step = max(1, _RERANKED_AT_ONCE // rows.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scores[part] = self._exact(queries[part], rows[part])
        return _best(scores, rows, k)

    def _exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products [n, c] of queries [n, d] with the vectors of rows [n, c]."""
        unique, places = np.unique(np.maximum(rows, 0), return_inverse=True)
        vectors = self._vectors.take(unique)[places.reshape(rows.shape)]
        return np.where(rows >= 0, (vectors @ queries[:, :, None])[:, :, 0], -np.inf)


def _on_gpu(index: faiss.Index) -> faiss.Index:
    import faiss

    return faiss.index_cpu_to_gpu(_gpu(), 0, index) if _gpu() else index


def count_ivf_lists(knowledge: Knowledge, passages: int) -> int:
    """Inverted lists for so many passages."""
    return knowledge.ivf_lists or max(1, round(4 * math.sqrt(passages)))


def count_training_vectors(knowledge: Knowledge, passages: int) -> int:
    """How many vectors the inverted lists and the codes are learnt from."""
    return min(passages, _TRAINING_PER_LIST * max(count_ivf_lists(knowledge, passages), _PQ_CENTROIDS))


def check_ivfpq(knowledge: Knowledge, passages: int, dimension: int) -> None:
    """Raise InputError where the settings do not go with the vectors."""
    if dimension % knowledge.pq_bytes:
        raise InputError(f"knowledge.pq_bytes = {knowledge.pq_bytes} does not divide the dimension {dimension}")
    least = max(count_ivf_lists(knowledge, passages), _PQ_CENTROIDS)
    if passages < least:
        raise InputError(
            f"knowledge.index=ivfpq learns from at least {least:,} passages, there are {passages:,}; use flat"
        )


def build_ivfpq(vectors: Vectors, knowledge: Knowledge, file: Path) -> None:
    """Learn the lists and the codes from a seeded sample, add all vectors, write the index to `file`."""
    import faiss
    from tqdm import tqdm

    check_ivfpq(knowledge, len(vectors), vectors.dimension)
    quantizer = faiss.IndexFlatIP(vectors.dimension)
    lists = count_ivf_lists(knowledge, len(vectors))
    index = faiss.IndexIVFPQ(quantizer, vectors.dimension, lists, knowledge.pq_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    count = count_training_vectors(knowledge, len(vectors))
    index.train(vectors.take(np.random.default_rng(0).choice(len(vectors), count, replace=False)))
    with tqdm(total=len(vectors), desc="index", unit="vector") as bar:
        for part in _parts(vectors):
            index.add(part)
            bar.update(len(part))
    with replace_file(file) as temporary, open(temporary, "wb") as handle:
        faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))


def _parts(vectors: Vectors, size: int = 2**15) -> Iterator[np.ndarray]:
    """Slices of shards: FAISS computes a slice's residuals at once."""
    for _, shard in vectors:
        for start in range(0, len(shard), size):
            yield shard[start : start + size]


def read_ivfpq(file: Path, count: int) -> faiss.IndexIVFPQ:
    """The index in `file`. Raises RuntimeError when FAISS cannot read it, or it does not hold `count` vectors."""
    import faiss

    index = faiss.read_index(str(file))
    if index.ntotal != count:
        raise RuntimeError(f"{file.name} holds {index.ntotal} vectors, not {count}")
    return index
