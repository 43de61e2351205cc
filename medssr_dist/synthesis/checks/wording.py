"""Texts as words, and words as hashed n-grams: what questions are compared by.

A word is a run of letters and digits, without case, accents and typographic variants. Many texts are hashed at
once: a word's hash is a polynomial over its bytes, so all of them follow from one cumulative sum (Karp and
Rabin, IBM J. Res. Dev. 31:249-260, 1987), several times faster than a dictionary of words. Hashes are the same
in every process and on every machine (Python's own are not), so that a resumed run refuses what an
uninterrupted one refuses.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b, shake_256

import numpy as np

# ASCII: letters in lower case, marks become spaces. The bytes of other letters stay.
_FOLD = bytes(byte if byte > 127 else ord(chr(byte).lower()) if chr(byte).isalnum() else 32 for byte in range(256))
_ASCII = bytes(range(128))
_STEP = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64


def whole_text(stem: str, options: Iterable[str]) -> str:
    """Stem and options as a reader sees them, but the options sorted: their order tells nothing of likeness."""
    return "\n".join([stem, *sorted(options, key=str.casefold)])


def fold(text: str) -> bytes:
    """`text` as UTF-8 words with spaces between. Example: "Sjögren’s: IL-6" -> b"sjogren s  il 6"."""
    coded = text.encode("utf-8", "replace")
    if not text.isascii():
        for character in set(coded.translate(None, _ASCII).decode()):
            text = text.replace(character, _fold_character(character))
        coded = text.encode("utf-8", "replace")
    return coded.translate(_FOLD)


@lru_cache(maxsize=2**14)
def _fold_character(character: str) -> str:
    """Its letters and digits without case and accents; a mark becomes a space, a combining accent nothing."""
    plain = unicodedata.normalize("NFKD", character).casefold()
    return "".join(part if part.isalnum() else " " for part in plain if not unicodedata.combining(part))


def text_hash(folded: bytes) -> int:
    """64 bits, equal for texts of the same words."""
    return int.from_bytes(blake2b(b" ".join(folded.split()), digest_size=8).digest(), "little")


def word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all words of folded `texts`, one after the other (uint64), and the number of words of each."""
    joined = np.frombuffer(b" ".join([b"", *texts, b""]), np.uint8)
    in_word = joined != ord(" ")
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    before, last = edges[::2], edges[1::2]  # the space before each word, and its last byte
    powers, inverses = _powers(1 << len(joined).bit_length())
    sums = np.cumsum(_byte_values()[joined] * powers[: len(joined)])
    hashes = (sums[last] - sums[before]) * inverses[before]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    return hashes, np.diff(np.searchsorted(before, ends), prepend=0)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hash of each run of `n` words, uint64 (len(words) - n + 1,), from the words' hashes."""
    count = max(0, len(words) - n + 1)
    grams = words[:count].copy()
    for offset in range(1, n):
        grams *= np.uint64(_STEP)
        grams += words[offset : offset + count]
    return grams


def random_words(name: str, count: int) -> np.ndarray:
    """`count` fixed pseudorandom uint64, the same everywhere and for ever."""
    return np.frombuffer(shake_256(name.encode()).digest(8 * count), "<u8")


@cache
def _byte_values() -> np.ndarray:
    return random_words("bytes", 256)


@lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """_STEP ** 0..size-1 mod 2^64, and their inverses."""
    return tuple(np.cumprod(np.full(size, base, np.uint64)) for base in (_STEP, pow(_STEP, -1, 1 << 64)))
