"""A corpus as vectors: encoded in shards, kept as .npy files, mapped when read.

A shard is `knowledge.shard_size` passages, the unit of encoding and of resuming: its file appears whole or not at
all, so that a killed run loses the shards in work and nothing else. float32, as the encoders give it: half
precision would halve the disk, and change which of two near passages comes first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.knowledge.cache_files import replace_file
from medssr_dist.knowledge.encoders import Encoder
from medssr_dist.knowledge.passages import Corpus

_log = logging.getLogger(__name__)


class Vectors:
    """[n, d] float32 in shards. A shard is an array, or an .npy file that is mapped while it is used."""

    def __init__(self, shards: Sequence[np.ndarray | Path]):
        shapes = [_opened(shard).shape for shard in shards]
        self._shards, self.dimension = shards, shapes[0][1]
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.shards = len(shards)

    @classmethod
    def split(cls, array: np.ndarray, shard_size: int) -> Vectors:
        """Views of an [n, d] float32 array, which may be a memory map."""
        return cls([array[start : start + shard_size] for start in range(0, len(array), shard_size)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(row of its first vector, shard) in order."""
        for start, shard in zip(self._starts, self._shards, strict=False):
            yield int(start), _opened(shard)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of `rows` [m]: [m, d]; each shard is read in the order of its rows."""
        taken = np.empty((len(rows), self.dimension), np.float32)
        order = np.argsort(rows)
        bounds = np.searchsorted(rows[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[number] : bounds[number + 1]]
            taken[places] = _opened(self._shards[number])[rows[places] - self._starts[number]]
        return taken

    def in_memory(self) -> Vectors:
        """The same, read whole."""
        return Vectors([np.array(shard) for _, shard in self])


def _opened(shard: np.ndarray | Path) -> np.ndarray:
    return np.load(shard, mmap_mode="r") if isinstance(shard, Path) else shard


def list_shard_files(folder: Path, passages: int, shard_size: int) -> list[Path]:
    """Where the shards of so many passages are kept."""
    return [folder / f"{number:05}.npy" for number in range(-(-passages // shard_size))]


def encode_corpus(corpus: Corpus, knowledge: Knowledge, folder: Path, load: Callable[[], Encoder]) -> Vectors:
    """Encode the shards that are not yet in `folder`, here or on Ray workers, and return all of them.

    Holds no lock: one process at a time may work in `folder`.

    Args:
        load: gives the encoder; called only when something is left to encode in this process.
    Raises:
        InputError: the disk is full; the Ray cluster is too small.
    """
    from tqdm import tqdm

    size = knowledge.shard_size
    files = list_shard_files(folder, len(corpus), size)
    rows = {number: range(len(corpus))[number * size : (number + 1) * size] for number in range(len(files))}
    missing = {number: rows[number] for number, file in enumerate(files) if not _is_whole(file, len(rows[number]))}
    if not missing:
        return Vectors(files)
    for stale in folder.glob(".*.npy.*.tmp"):  # of a killed run
        stale.unlink()
    done = len(corpus) - sum(map(len, missing.values()))
    with tqdm(total=len(corpus), initial=done, desc="encode", unit="passage", smoothing=0) as bar:
        for number, vectors in _encoded(corpus, knowledge, missing, load):
            with replace_file(files[number]) as temporary, open(temporary, "wb") as file:
                np.save(file, vectors)
            bar.update(len(vectors))
    return Vectors(files)


def _encoded(corpus: Corpus, knowledge: Knowledge, shards: dict[int, range], load) -> Iterator[tuple[int, np.ndarray]]:
    """(shard, its vectors) as they are done."""
    if knowledge.workers:
        from medssr_dist.knowledge.encoder_workers import encode_on_workers

        yield from encode_on_workers(corpus, knowledge, shards)
        return
    encoder = load()
    for number, rows in shards.items():
        yield number, encoder.encode_articles(corpus[rows.start : rows.stop])


def _is_whole(file: Path, passages: int) -> bool:
    if not file.exists():
        return False
    try:
        return len(np.load(file, mmap_mode="r")) == passages
    except (ValueError, OSError, EOFError) as error:
        _log.warning("%s cannot be read (%s); encoding its passages again", file, error)
        return False
