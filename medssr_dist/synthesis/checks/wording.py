"""Texts as words, and words as hashed n-grams, by which questions are compared.

A word is a run of letters and digits, without case, accents, typographic variants (full-width and mathematical
letters, ligatures), invisible characters (soft hyphens, zero-width spaces), and with Latin letters for the Cyrillic
ones that look the same. Many texts are hashed at once:
the hash of a word is a polynomial over its bytes, so all hashes follow from one cumulative sum (Karp and Rabin, IBM
J. Res. Dev. 31:249-260, 1987). This is several times faster than a dictionary of words. The hashes are the same in
every process and on every machine (Python's built-in hashes are not), so a resumed run rejects the same questions as
an uninterrupted one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b, shake_256
from typing import NamedTuple

import numpy as np

# ASCII letters become lower case, other ASCII characters except digits become spaces; other bytes stay.
_FOLD = bytes(byte if byte > 127 else ord(chr(byte).lower()) if chr(byte).isalnum() else 32 for byte in range(256))
_ASCII = bytes(range(128))
# What a reader does not see: soft hyphens, zero-width characters, marks of direction, variation selectors, fillers,
# tags, and control characters other than white space (most of Unicode's Default_Ignorable_Code_Point).
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LOOK_ALIKE = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455",
    "ABEKMHOPCTYXIJSaeopcyxijs",
)
_STEP = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64


def join_text(stem: str, options: Iterable[str]) -> str:
    """Join stem and options as a reader sees them, but with sorted options: their order does not matter."""
    return "\n".join([stem, *sorted(options, key=fold)])


def remove_invisible(text: str) -> str:
    """Return `text` without characters that a reader does not see. Example: "diag\\u00adnosis" -> "diagnosis"."""
    return text if text.isascii() and text.isprintable() else _INVISIBLE.sub("", text)


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
    """Return its letters and digits without case and accents; punctuation becomes a space, what is unseen vanishes."""
    plain = unicodedata.normalize("NFKD", character.translate(_LOOK_ALIKE)).casefold()
    seen = (part for part in _INVISIBLE.sub("", plain) if unicodedata.category(part) not in ("Mn", "Me", "Cf"))
    return "".join(part if part.isalnum() else " " for part in seen)


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
