"""A FAISS inner-product index over a corpus: built once, cached on disk, checked against its corpus."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.cache import cache_dir
from medssr_dist.errors import InputError
from medssr_dist.jsonl import raise_if_disk_full, read_json, write_json
from medssr_dist.knowledge.corpus import Passage, corpus_hash
from medssr_dist.knowledge.encoders import Encoder
from medssr_dist.records import content_hash

if TYPE_CHECKING:
    import faiss

_log = logging.getLogger(__name__)


def index_dir(passages: Sequence[Passage], encoder: str) -> Path:
    """Where the index of these passages under the encoder of that name is cached, and all made from it."""
    return cache_dir() / "index" / content_hash([corpus_hash(passages), encoder])


def open_index(passages: Sequence[Passage], encoder: str, load: Callable[[], Encoder]) -> faiss.Index:
    """The index, row i for passage i; on the GPU where FAISS has one.

    A cached index is used only if it was made from these passages. `load` is called only to build one.
    """
    directory = index_dir(passages, encoder)
    index = _read(directory, passages) or _build(directory, passages, load())
    return _on_gpu(index)


def _read(directory: Path, passages: Sequence[Passage]) -> faiss.Index | None:
    """The cached index, or None if there is none that fits; one that does not fit is reported."""
    import faiss

    if not (directory / "index.json").exists():
        return None
    try:
        expected = {"corpus_hash": corpus_hash(passages), "count": len(passages)}
        stated = read_json(directory / "index.json")
        index = faiss.read_index(str(directory / "index.faiss"))
        if {key: stated.get(key) for key in expected} == expected and index.ntotal == len(passages):
            return index
        reason = f"it holds {index.ntotal} passages with hash {stated.get('corpus_hash')}, expected {expected}"
    except (RuntimeError, InputError, AttributeError) as error:
        reason = f"it cannot be read ({' '.join(str(error).split())[:200]})"
    _log.warning("index %s does not match its corpus: %s; building it again", directory, reason)
    return None


def _build(directory: Path, passages: Sequence[Passage], encoder: Encoder) -> faiss.Index:
    """Encode, write the index, then index.json: its presence says that the index is whole."""
    import faiss

    vectors = encoder.encode_articles(passages)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "index.json").unlink(missing_ok=True)
    temporary = directory / f".index.faiss.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(faiss.serialize_index(index).tobytes())
        os.replace(temporary, directory / "index.faiss")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, directory)
        raise
    facts = {"corpus_hash": corpus_hash(passages), "count": len(passages), "encoder": encoder.name}
    write_json(directory / "index.json", facts)
    return index


def _on_gpu(index: faiss.Index) -> faiss.Index:
    import faiss

    if getattr(faiss, "get_num_gpus", lambda: 0)() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
