"""Texts as words, and words as hashed n-grams, by which questions are compared.

A word is a run of letters and digits, without case, accents and typographic variants. Many texts are hashed at once:
the hash of a word is a polynomial over its bytes, so all hashes follow from one cumulative sum (Karp and Rabin, IBM
J. Res. Dev. 31:249-260, 1987). This is several times faster than a dictionary of words. The hashes are the same in
every process and on every machine (Python's built-in hashes are not), so a resumed run rejects the same questions as
an uninterrupted one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b, shake_256
from typing import NamedTuple

import numpy as np

# ASCII letters become lower case, other ASCII characters except digits become spaces; other bytes stay.
_FOLD = bytes(byte if byte > 127 else ord(chr(byte).lower()) if chr(byte).isalnum() else 32 for byte in range(256))
_ASCII = bytes(range(128))
_STEP = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64


def join_text(stem: str, options: Iterable[str]) -> str:
    """Join stem and options as a reader sees them, but with sorted options: their order does not matter."""
    return "\n".join([stem, *sorted(options, key=str.casefold)])


def fold(text: str) -> bytes:
    """Return the words of `text` as UTF-8, separated by spaces. Example: "Sjögren’s: IL-6" -> b"sjogren s  il 6"."""
    coded = text.encode("utf-8", "replace")
    if not text.isascii():
        for character in set(coded.translate(None, _ASCII).decode()):
            text = text.replace(character, _fold_character(character))
        coded = text.encode("utf-8", "replace")
    return coded.translate(_FOLD)


@lru_cache(maxsize=2**14)
def _fold_character(character: str) -> str:
    """Return its letters and digits without case and accents; punctuation becomes a space, accents are dropped."""
    plain = unicodedata.normalize("NFKD", character).casefold()
    return "".join(part if part.isalnum() else " " for part in plain if not unicodedata.combining(part))


def hash_text(folded: bytes) -> int:
    """Return 64 bits, equal for texts of the same words."""
    return int.from_bytes(blake2b(b" ".join(folded.split()), digest_size=8).digest(), "little")


class WordHashes(NamedTuple):
    """Hashes of all words of some texts, uint64 (words,), and the number of words of each text, (texts,)."""

    hashes: np.ndarray
    counts: np.ndarray


def hash_words(texts: Sequence[bytes]) -> WordHashes:
    """Hash all words of folded `texts`, one text after the other."""
    joined = np.frombuffer(b" ".join([b"", *texts, b""]), np.uint8)
    in_word = joined != ord(" ")
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    before, last = edges[::2], edges[1::2]  # the space before each word, and its last byte
    powers, inverses = _powers(1 << len(joined).bit_length())
    sums = np.cumsum(_byte_values()[joined] * powers[: len(joined)])
    hashes = (sums[last] - sums[before]) * inverses[before]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    return WordHashes(hashes, np.diff(np.searchsorted(before, ends), prepend=0))


def hash_ngrams(words: np.ndarray, n: int) -> np.ndarray:
    """Return the hash of each run of `n` words, uint64 (len(words) - n + 1,), from the words' hashes."""
    count = max(0, len(words) - n + 1)
    grams = words[:count].copy()
    for offset in range(1, n):
        grams *= np.uint64(_STEP)
        grams += words[offset : offset + count]
    return grams


def draw_random_words(name: str, count: int) -> np.ndarray:
    """Return `count` fixed pseudorandom uint64, the same in every process and version."""
    return np.frombuffer(shake_256(name.encode()).digest(8 * count), "<u8")


@cache
def _byte_values() -> np.ndarray:
    return draw_random_words("bytes", 256)


@lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return _STEP ** 0..size-1 mod 2^64, and their inverses."""
    return tuple(np.cumprod(np.full(size, base, np.uint64)) for base in (_STEP, pow(_STEP, -1, 1 << 64)))
