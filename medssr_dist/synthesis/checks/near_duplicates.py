"""Near-duplicates: MinHash over word 5-grams with locality-sensitive hashing, in about 200 bytes per question.

The signature of a question is one byte of each of 96 minima of hashed 5-grams. The share of equal bytes estimates the
Jaccard similarity of two questions, with a standard error of 0.04 at 0.8 (Broder, SEQUENCES 1997; b-bit MinHash: Li
and Koenig, WWW 2010). The signature is cut into bands; questions that share a band are candidates (Leskovec, Rajaraman
and Ullman, Mining of Massive Datasets, chapter 3). Bands are as wide as possible while a pair at the threshold shares
a band with a probability of 99%. Each candidate is then compared by the whole signature.

Why not `datasketch`: its LSH keeps Python objects, which takes 3.5 KB per question, 3.5 GB for a million, and 350 us
per question (measured with version 2.0.0). Here the bucket of a band is a row of eight question numbers in one array.
Further numbers are dropped, so a phrase that thousands of questions share costs no more than any other. The buckets
are built again from the signatures when the array grows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medssr_dist.synthesis.checks.wording import draw_random_words, hash_ngrams, hash_words

N = 5
HASHES = 96
_RECALL = 0.99  # share of the pairs at the threshold that become candidates
_BUCKET = 8  # questions per bucket
_MAX_LOAD = 0.75  # share of the places in use above which the table grows
_GROWTH = 1.25
_BATCH = 1024  # questions entered into the table at once


class NearMatch(NamedTuple):
    """A stored question, by its number, and its estimated similarity. Example: NearMatch(17, 0.84)"""

    number: int
    similarity: float


class Sketches(NamedTuple):
    """Sketches of some texts: signatures, uint8 (texts, HASHES), and hashes of their bands, uint64 (texts, bands)."""

    signatures: np.ndarray
    keys: np.ndarray

    def select(self, number: int) -> Sketches:
        """Return the sketch of one text."""
        return Sketches(self.signatures[number : number + 1], self.keys[number : number + 1])


class NearDuplicates:
    """Signatures of questions, numbered in the order in which they were added."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._bands, self._rows = choose_bands(threshold)
        self._signatures = np.zeros((_BATCH, HASHES), np.uint8)
        self._count = 0
        self._mix = draw_random_words("bands", self._bands * self._rows).reshape(self._bands, self._rows) | np.uint64(1)
        self._table = self._empty_table(_BATCH)

    def sketch(self, texts: Sequence[bytes]) -> Sketches:
        """Return the sketches of folded texts. They do not depend on stored questions, so many are computed at once."""
        signatures = compute_signatures(texts)
        return Sketches(signatures, self._keys(signatures))

    def find(self, sketch: Sketches) -> NearMatch | None:
        """Return the most similar stored question if its similarity reaches the threshold, else None."""
        numbers = self._table[self._buckets(sketch.keys[0])]
        numbers = numbers[numbers > 0] - 1
        if not len(numbers):
            return None
        same = np.count_nonzero(self._signatures[numbers] == sketch.signatures[0], axis=1)
        best = int(same.argmax())
        similarity = float(same[best]) / HASHES
        return NearMatch(int(numbers[best]), similarity) if similarity >= self._threshold else None

    def add(self, sketches: Sketches) -> None:
        """Store further questions."""
        first, self._count = self._count, self._count + len(sketches.keys)
        if self._count > len(self._signatures):  # resized in place, without a second copy in memory
            self._signatures.resize((max(self._count, len(self._signatures) * 9 // 8), HASHES), refcheck=False)
        self._signatures[first : self._count] = sketches.signatures
        if self._count * self._bands > self._table.size * _MAX_LOAD:
            self._rebuild()
        else:
            self._put(first, sketches.keys)

    def _rebuild(self) -> None:
        self._table = self._empty_table(0)  # frees the old table before the larger one is allocated
        self._table = self._empty_table(int(self._count * _GROWTH))
        for start in range(0, self._count, _BATCH):
            self._put(start, self._keys(self._signatures[start : min(start + _BATCH, self._count)]))

    def _empty_table(self, questions: int) -> np.ndarray:
        """Return an empty table for `questions`: question number + 1 by bucket and place, 0 = free."""
        return np.zeros((math.ceil(questions * self._bands / _BUCKET / _MAX_LOAD), _BUCKET), np.uint32)

    def _put(self, first: int, keys: np.ndarray) -> None:
        """Enter questions first, first + 1, ... in free places of their buckets."""
        buckets = self._buckets(keys.ravel())
        order = np.argsort(buckets, kind="stable")
        buckets, numbers = buckets[order], first + 1 + order // self._bands
        places = np.count_nonzero(self._table[buckets], axis=1)
        places += np.arange(len(buckets)) - np.searchsorted(buckets, buckets)
        free = places < _BUCKET
        self._table[buckets[free], places[free]] = numbers[free]

    def _keys(self, signatures: np.ndarray) -> np.ndarray:
        """Return the hash of each band, uint64 (questions, bands)."""
        used = signatures[:, : self._mix.size].reshape(-1, self._bands, self._rows)
        return np.sum((used + np.uint64(1)) * self._mix, axis=2) >> np.uint64(32)

    def _buckets(self, keys: np.ndarray) -> np.ndarray:
        return (keys * np.uint64(len(self._table)) >> np.uint64(32)).astype(np.int64)


class HashSet:
    """A set of 64-bit hashes with open addressing: 12-24 bytes each, while a Python set takes about 70."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __contains__(self, value: int) -> bool:
        return self._slots[self._slot(value or 1)] != 0

    def add(self, value: int) -> None:
        """Add a hash."""
        slot = self._slot(value or 1)  # 0 = free
        self._count += self._slots[slot] == 0
        self._slots[slot] = value or 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()

    def _slot(self, value: int) -> int:
        """Return the slot that holds `value`, or the free slot for it."""
        last = len(self._slots) - 1
        slot = value & last
        while self._slots[slot] not in (0, value):
            slot = slot + 1 & last
        return slot

    def _grow(self) -> None:
        held, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for value in filter(None, held):
            self._slots[self._slot(value)] = value


def compute_signatures(texts: Sequence[bytes]) -> np.ndarray:
    """Return MinHash signatures, uint8 (texts, HASHES), of folded texts. A text of fewer than 5 words is one gram."""
    words, lengths = hash_words(texts)
    grams = hash_ngrams(words, N)
    found = np.zeros((len(texts), HASHES), np.uint8)
    first = 0
    for row, length in enumerate(lengths.tolist()):
        if length >= N:
            found[row] = _minima(grams[first : first + length - N + 1])
        elif length:
            found[row] = _minima(hash_ngrams(words[first : first + length], length))
        first += length
    return found


def _minima(grams: np.ndarray) -> np.ndarray:
    """Return one byte of the minimum of each of HASHES hash functions ((a x + b) mod 2^32) over the grams."""
    values = (grams >> np.uint64(32)).astype(np.uint32)[:, None] * _FACTORS
    values += _ADDENDS
    return (values.min(axis=0) * np.uint32(0x9E3779B1) >> np.uint32(24)).astype(np.uint8)


class Bands(NamedTuple):
    """How a signature is cut into bands. Example: Bands(count=16, rows=6)"""

    count: int
    rows: int


def choose_bands(threshold: float) -> Bands:
    """Return the widest and fewest bands that 99% of the pairs at the threshold share."""
    for rows in range(HASHES // 8, 0, -1):
        caught = min(threshold**rows, 0.99)
        bands = math.ceil(math.log(1 - _RECALL) / math.log1p(-caught)) if caught else HASHES + 1
        if bands * rows <= HASHES:
            return Bands(bands, rows)
    return Bands(HASHES, 1)


_FACTORS, _ADDENDS = draw_random_words("minhash", 2 * HASHES).astype(np.uint32).reshape(2, HASHES)
_FACTORS = _FACTORS | np.uint32(1)
