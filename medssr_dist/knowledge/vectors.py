"""The vectors of a corpus: encoded in shards, stored as .npy files, memory-mapped when read.

A shard is `knowledge.shard_size` passages, the unit of encoding and resuming. Its file is either complete or absent,
so a killed run loses only the shards in flight. Vectors are stored as float32, as the encoders return them: half
precision would need half the disk but change the order of passages with close scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.knowledge.cache_files import replace_file
from medssr_dist.knowledge.encoders import EncodedShard, Encoder
from medssr_dist.knowledge.passages import Corpus

logger = logging.getLogger(__name__)


class Vectors:
    """float32 [n, d] in shards. A shard is an array, or an .npy file that is memory-mapped while it is in use."""

    def __init__(self, shards: Sequence[np.ndarray | Path]):
        shapes = [_open(shard).shape for shard in shards]
        self._shards, self.dimension = shards, shapes[0][1]
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.shard_count = len(shards)

    @classmethod
    def split(cls, array: np.ndarray, shard_size: int) -> Vectors:
        """Return shards that are views of a float32 [n, d] array, which may be a memory map."""
        return cls([array[start : start + shard_size] for start in range(0, len(array), shard_size)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (row of the first vector, shard) in order."""
        for start, shard in zip(self._starts, self._shards, strict=False):
            yield int(start), _open(shard)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of `rows` [m] as [m, d]. Each shard is read once."""
        taken = np.empty((len(rows), self.dimension), np.float32)
        order = np.argsort(rows)
        bounds = np.searchsorted(rows[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[number] : bounds[number + 1]]
            taken[places] = _open(self._shards[number])[rows[places] - self._starts[number]]
        return taken

    def load(self) -> Vectors:
        """Return the same vectors, read into memory."""
        return Vectors([np.array(shard) for _, shard in self])


def _open(shard: np.ndarray | Path) -> np.ndarray:
    return np.load(shard, mmap_mode="r") if isinstance(shard, Path) else shard


def list_shard_files(folder: Path, passages: int, shard_size: int) -> list[Path]:
    """Return the files of the shards of `passages` passages, in order."""
    return [folder / f"{number:05}.npy" for number in range(-(-passages // shard_size))]


def encode_corpus(corpus: Corpus, knowledge: Knowledge, folder: Path, load: Callable[[], Encoder]) -> Vectors:
    """Encode the shards that are missing in `folder`, in this process or on Ray workers, and return all shards.

    Takes no lock: the caller ensures that only one process works in `folder`.

    Args:
        load: returns the encoder; called only if this process has something to encode.
    Raises:
        InputError: the disk is full, or the Ray cluster is too small.
    """
    from medssr_dist.runtime.progress_bar import ProgressBar

    size = knowledge.shard_size
    files = list_shard_files(folder, len(corpus), size)
    rows = {number: range(len(corpus))[number * size : (number + 1) * size] for number in range(len(files))}
    missing = {number: rows[number] for number, file in enumerate(files) if not _is_complete(file, len(rows[number]))}
    if not missing:
        return Vectors(files)
    for stale in folder.glob(".*.npy.*.tmp"):  # left by a killed run
        stale.unlink()
    done = len(corpus) - sum(map(len, missing.values()))
    with ProgressBar(total=len(corpus), initial=done, desc="encode", unit="passage", smoothing=0) as bar:
        for number, vectors in _encode(corpus, knowledge, missing, load):
            with replace_file(files[number]) as temporary, open(temporary, "wb") as file:
                np.save(file, vectors)
            bar.update(len(vectors))
    return Vectors(files)


def _encode(
    corpus: Corpus, knowledge: Knowledge, shards: dict[int, range], load: Callable[[], Encoder]
) -> Iterator[EncodedShard]:
    """Yield the shards as they are finished."""
    if knowledge.workers:
        from medssr_dist.knowledge.encoder_workers import encode_on_workers

        yield from encode_on_workers(corpus, knowledge, shards)
        return
    encoder = load()
    for number, rows in shards.items():
        yield EncodedShard(number, encoder.encode_articles(corpus[rows.start : rows.stop]))


def _is_complete(file: Path, passages: int) -> bool:
    if not file.exists():
        return False
    try:
        return len(np.load(file, mmap_mode="r")) == passages
    except (ValueError, OSError, EOFError) as error:
        logger.warning("%s cannot be read (%s); encoding its passages again", file, error)
        return False
