"""Near-duplicates: MinHash over word 5-grams, with locality-sensitive hashing, in about 200 bytes a question.

A question's signature is 96 minima of hashed 5-grams, one byte of each: the share of equal bytes estimates the
Jaccard similarity of two questions with a standard error of 0.04 at 0.8 (Broder, SEQUENCES 1997; b-bit MinHash:
Li and Koenig, WWW 2010). Cut into bands, it names the questions that can be near (Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3): bands are as wide as they can be while a pair at the threshold
shares one with 99%. Each such question is then compared by the whole signature.

Why not `datasketch`: its LSH keeps Python objects, 3.5 KB a question, 3.5 GB for a million (seen, version 2.0.0),
and 350 us a question. Here a band's bucket is a row of eight question numbers in one array; a number over eight
is dropped, so that a phrase which thousands of questions share costs no more than any other. Buckets are rebuilt
from the signatures when the array grows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medssr_dist.synthesis.checks.wording import ngram_hashes, random_words, word_hashes

N = 5
HASHES = 96
_RECALL = 0.99  # of pairs at the threshold
_BUCKET = 8  # questions a bucket
_FULLEST = 0.75  # share of the places in use at which the table grows
_GROWTH = 1.25
_BATCH = 1024  # questions put into the table at once


class Near(NamedTuple):
    """A question already held, by its number, and its estimated similarity."""

    number: int
    similarity: float


class Sketches(NamedTuple):
    """Of some texts: signatures, uint8 (texts, HASHES), and the hashes of their bands, uint64 (texts, bands)."""

    signatures: np.ndarray
    keys: np.ndarray

    def one(self, number: int) -> Sketches:
        return Sketches(self.signatures[number : number + 1], self.keys[number : number + 1])


class NearDuplicates:
    """Signatures of questions, numbered in the order they were added."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._bands, self._rows = band_shape(threshold)
        self._signatures = np.zeros((_BATCH, HASHES), np.uint8)
        self._count = 0
        self._mix = random_words("bands", self._bands * self._rows).reshape(self._bands, self._rows) | np.uint64(1)
        self._table = self._empty_table(_BATCH)

    def sketch(self, texts: Sequence[bytes]) -> Sketches:
        """What folded texts are compared by; depends on nothing held, so that many can be made at once."""
        signatures = signatures_of(texts)
        return Sketches(signatures, self._keys(signatures))

    def find(self, sketch: Sketches) -> Near | None:
        """The question most like the one of `sketch`, if it is as near as the threshold."""
        numbers = self._table[self._buckets(sketch.keys[0])]
        numbers = numbers[numbers > 0] - 1
        if not len(numbers):
            return None
        same = np.count_nonzero(self._signatures[numbers] == sketch.signatures[0], axis=1)
        best = int(same.argmax())
        similarity = float(same[best]) / HASHES
        return Near(int(numbers[best]), similarity) if similarity >= self._threshold else None

    def add(self, sketches: Sketches) -> None:
        """Hold further questions."""
        first, self._count = self._count, self._count + len(sketches.keys)
        if self._count > len(self._signatures):  # in place: no second copy, even for a moment
            self._signatures.resize((max(self._count, len(self._signatures) * 9 // 8), HASHES), refcheck=False)
        self._signatures[first : self._count] = sketches.signatures
        if self._count * self._bands > self._table.size * _FULLEST:
            self._rebuild()
        else:
            self._put(first, sketches.keys)

    def _rebuild(self) -> None:
        self._table = None  # freed before the larger one is made
        self._table = self._empty_table(int(self._count * _GROWTH))
        for start in range(0, self._count, _BATCH):
            self._put(start, self._keys(self._signatures[start : min(start + _BATCH, self._count)]))

    def _empty_table(self, questions: int) -> np.ndarray:
        """Question number + 1 by bucket and place, 0 = free; room for `questions`."""
        return np.zeros((math.ceil(questions * self._bands / _BUCKET / _FULLEST), _BUCKET), np.uint32)

    def _put(self, first: int, keys: np.ndarray) -> None:
        """Enter questions first, first + 1... in their buckets, behind those that are there."""
        buckets = self._buckets(keys.ravel())
        order = np.argsort(buckets, kind="stable")
        buckets, numbers = buckets[order], first + 1 + order // self._bands
        places = np.count_nonzero(self._table[buckets], axis=1)
        places += np.arange(len(buckets)) - np.searchsorted(buckets, buckets)
        free = places < _BUCKET
        self._table[buckets[free], places[free]] = numbers[free]

    def _keys(self, signatures: np.ndarray) -> np.ndarray:
        """Hash of each band, uint64 (questions, bands)."""
        used = signatures[:, : self._mix.size].reshape(-1, self._bands, self._rows)
        return np.sum((used + np.uint64(1)) * self._mix, axis=2) >> np.uint64(32)

    def _buckets(self, keys: np.ndarray) -> np.ndarray:
        return (keys * np.uint64(len(self._table)) >> np.uint64(32)).astype(np.int64)


class HashSet:
    """A set of 64-bit hashes in 12-24 bytes each, by open addressing; a Python set takes about 70."""

    def __init__(self):
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __contains__(self, value: int) -> bool:
        return self._slots[self._slot(value or 1)] != 0

    def add(self, value: int) -> None:
        slot = self._slot(value or 1)  # 0 = free
        self._count += self._slots[slot] == 0
        self._slots[slot] = value or 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()

    def _slot(self, value: int) -> int:
        """Where `value` is, or may be put."""
        last = len(self._slots) - 1
        slot = value & last
        while self._slots[slot] not in (0, value):
            slot = slot + 1 & last
        return slot

    def _grow(self) -> None:
        held, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
        for value in filter(None, held):
            self._slots[self._slot(value)] = value


def signatures_of(texts: Sequence[bytes]) -> np.ndarray:
    """MinHash signatures, uint8 (texts, HASHES), of folded texts. A text under 5 words is one gram."""
    words, lengths = word_hashes(texts)
    grams = ngram_hashes(words, N)
    found = np.zeros((len(texts), HASHES), np.uint8)
    first = 0
    for row, length in enumerate(lengths.tolist()):
        if length >= N:
            found[row] = _minima(grams[first : first + length - N + 1])
        elif length:
            found[row] = _minima(ngram_hashes(words[first : first + length], length))
        first += length
    return found


def _minima(grams: np.ndarray) -> np.ndarray:
    """One byte of the least value of each of HASHES hash functions ((a x + b) mod 2^32) over the grams."""
    values = (grams >> np.uint64(32)).astype(np.uint32)[:, None] * _FACTORS
    values += _ADDENDS
    return (values.min(axis=0) * np.uint32(0x9E3779B1) >> np.uint32(24)).astype(np.uint8)


def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the most rows whose bands catch 99% of pairs at the threshold, and no more bands."""
    for rows in range(HASHES // 8, 0, -1):
        caught = min(threshold**rows, 0.99)
        bands = math.ceil(math.log(1 - _RECALL) / math.log1p(-caught)) if caught else HASHES + 1
        if bands * rows <= HASHES:
            return bands, rows
    return HASHES, 1


_FACTORS, _ADDENDS = random_words("minhash", 2 * HASHES).astype(np.uint32).reshape(2, HASHES)
_FACTORS = _FACTORS | np.uint32(1)
