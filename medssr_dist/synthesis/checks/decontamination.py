"""Decontamination: rejects questions that are contained in an evaluation item (8-gram best-match coverage).

The coverage of a question by an item is the share of the question's word 8-grams that occur in that item. The single
item with the highest coverage counts. If a hit in any item counted instead, a third of sound vignettes would be
flagged, because they share vital signs and closing phrases. The stem and the options are compared as a reader sees
them, with sorted options: a copy with shuffled options is a copy. A text of fewer than 8 words has no 8-gram; it
matches an item of exactly the same words.

The check is fast because most questions share almost no 8-gram with the items. All texts of a batch are hashed at
once. A bitmap of the items' 8-grams (1 bit in 32 is set) shows which of them can occur at all. Only a question with
enough such 8-grams is compared, by its words and not by hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medssr_dist.data.records import Question
from medssr_dist.synthesis.checks.wording import fold, hash_ngrams, hash_words, join_text

N = 8
_BATCH = 256  # texts hashed at once: so few that their data fits into the processor's cache
_BITS_PER_GRAM = 32
_MIX = np.uint64(0xD6E8FEB86659FD93)


class Match(NamedTuple):
    """The evaluation item with the highest coverage of a text, and that coverage."""

    item: Question
    coverage: float


class Decontaminator:
    """Finds, for each text, the item that covers it best, if it covers at least `threshold` of the text."""

    def __init__(self, items: Sequence[Question], threshold: float):
        self._items = items
        self._threshold = threshold
        self._texts = [fold(join_text(item.stem, item.options.values())) for item in items]
        self._short = {
            tuple(words): number for number, text in enumerate(self._texts) if len(words := text.split()) < N
        }
        parts = [_hash_grams(self._texts[start : start + _BATCH], start) for start in range(0, len(items), _BATCH)]
        hashes = np.concatenate([part[0] for part in parts] or [np.empty(0, np.uint64)])
        owners = np.concatenate([part[1] for part in parts] or [np.empty(0, np.uint32)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]
        self._bitmap = _Bitmap(self._hashes)

    def check(self, texts: Sequence[str]) -> list[Match | None]:
        """Return the match of each of `texts` (see `wording.join_text`), None where there is none."""
        matches: list[Match | None] = []
        for start in range(0, len(texts), _BATCH):
            matches += self._check_batch([fold(text) for text in texts[start : start + _BATCH]])
        return matches

    def _check_batch(self, texts: list[bytes]) -> list[Match | None]:
        hashes, owners, lengths = _hash_grams(texts)
        total = np.bincount(owners, minlength=len(texts))
        known = np.bincount(owners[self._bitmap.may_contain(hashes)], minlength=len(texts))
        matches: list[Match | None] = [None] * len(texts)
        for number in np.flatnonzero(lengths < N):
            matches[number] = self._match_short(texts[number])
        for number in np.flatnonzero((known >= self._threshold * total) & (known > 0)):
            matches[number] = self._match_long(texts[number], hashes[owners == number])
        return matches

    def _match_short(self, text: bytes) -> Match | None:
        number = self._short.get(tuple(text.split()))
        return None if number is None else Match(self._items[number], 1.0)

    def _match_long(self, text: bytes, hashes: np.ndarray) -> Match | None:
        """Return the best match among the items that share enough hashes; coverage is counted on the words."""
        grams = _split_grams(text)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        shared: Counter[int] = Counter()
        for start, end in zip(first, last, strict=True):
            shared.update(set(self._owners[start:end].tolist()))
        likely = sorted(number for number, count in shared.items() if count >= self._threshold * len(grams))
        covered = {number: self._measure_coverage(grams, number) for number in likely}
        best = max(covered, key=covered.__getitem__, default=None)
        if best is None or covered[best] < self._threshold:
            return None
        return Match(self._items[best], covered[best])

    def _measure_coverage(self, grams: list[tuple[bytes, ...]], number: int) -> float:
        held = set(_split_grams(self._texts[number]))
        return sum(gram in held for gram in grams) / len(grams)


class _Bitmap:
    """Shows which hashes are certainly not in a set: a Bloom filter with one hash function."""

    def __init__(self, hashes: np.ndarray):
        bits = max(16, (len(hashes) * _BITS_PER_GRAM).bit_length())
        self._shift = np.uint64(64 - bits)
        self._bytes = np.zeros(1 << bits - 3, np.uint8)
        places = self._places(hashes)
        np.bitwise_or.at(self._bytes, places >> np.uint64(3), _bit(places))

    def may_contain(self, hashes: np.ndarray) -> np.ndarray:
        """Return bool (len(hashes),): True for each hash in the set, and by chance for a few others."""
        places = self._places(hashes)
        return (self._bytes[places >> np.uint64(3)] & _bit(places)) != 0

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes * _MIX) >> self._shift


def _bit(places: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))


def _hash_grams(texts: Sequence[bytes], first_number: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the hash of each 8-gram, the number of its text, and the number of words of each text.

    Shapes: uint64 (grams,), uint32 (grams,), int (texts,). Texts are numbered from `first_number`.
    """
    words, lengths = hash_words(texts)
    hashes = hash_ngrams(words, N)
    owners = np.repeat(np.arange(first_number, first_number + len(texts), dtype=np.uint32), lengths)
    first, last = owners[: len(hashes)], owners[len(owners) - len(hashes) :]
    inside = first == last
    return hashes[inside], first[inside], lengths


def _split_grams(text: bytes) -> list[tuple[bytes, ...]]:
    words = text.split()
    return [tuple(words[start : start + N]) for start in range(len(words) - N + 1)]
