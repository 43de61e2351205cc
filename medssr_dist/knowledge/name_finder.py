"""Diseases named in a text: whole words, whatever the spelling of the name.

A name and a text are compared as keys, which are the same for all these spellings:

- case, accents, Greek letters: "Sjögren" = "SJOGREN", "β" = "beta"; invisible characters are ignored
- possessive and plural:        "Gaucher's disease" = "Gauchers disease" = "Gaucher disease"
- hyphen, space or none:        "hyper-IgM" = "hyper IgM" = "hyperIgM"
- British and American English: "haemophilia" = "hemophilia", "tumour" = "tumor"
- numbers of types:             "Usher syndrome type II" = "Usher syndrome, type 2" = "Usher syndrome II"
- inverted names:               "Muscular dystrophy, Duchenne type" = "Duchenne muscular dystrophy"
- OMIM's markup:                "{3-@methylglutaconic aciduria}" = "3-methylglutaconic aciduria"

A name that is one acronym ("CHF") means different things in different texts. It is found only on request, and then in
its own case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from medssr_dist.knowledge.names import strip_markup

_MOST_WORDS = 24  # of a name; longer names are not searched for
_FEWEST_LETTERS = 3  # of a name, without spaces: "A-T" and "CF" mean too many other things
_POSSESSIVE = re.compile(r"(?<=\w)['’ʼ`´′‘]+(?:s\b)?", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "λ": "lambda"}
# A Roman number, and the letter of a subtype: "IIa".
_ROMAN = re.compile(r"(x{0,2}(?:ix|iv|v?i{0,3}))([a-h]?)")
# After one of these, a single letter I, V or X is a number too.
_NUMBERED = frozenset({"type", "grade", "stage", "class", "group", "factor", "complex"})
_DIGITS = {"i": 1, "v": 5, "x": 10}
# Words beside a name that make it another disease: "non-Hodgkin lymphoma", "Marfan syndrome-like".
_OTHER_BEFORE, _OTHER_AFTER = frozenset({"non", "pseudo"}), frozenset({"like", "mimic"})


class _Word(NamedTuple):
    """A word of a text: the key that is compared, and the word as written."""

    key: str
    written: str


@dataclass(frozen=True)
class FoundName:
    """A disease named in a text. Example: FoundName("ORPHA:355", "Gaucher disease", "Gaucher's disease").

    Attributes:
        id: the disease, as given to NameFinder.
        name: its name or synonym that was found.
        text: the words of the text.
    """

    id: str
    name: str
    text: str


class NameFinder:
    """Finds which of many diseases a text names. Built once, it needs about half a millisecond for a question.

    Where names overlap, the longest counts: "juvenile Huntington disease" is not "Huntington disease" if both are
    known. A name after "non-" or "pseudo", or before "-like", is not counted.

    Args:
        names: id of a disease -> its name and synonyms.
        acronyms: also find names that are one acronym of at least three letters, in the same case as written.
    """

    def __init__(self, names: Mapping[str, Iterable[str]], acronyms: bool = False):
        self._known: dict[str, list[tuple[str, str]]] = {}
        self._longest = 1
        for disease, spellings in names.items():
            for spelling in spellings:
                if not is_acronym(spelling) or acronyms:
                    self._add(disease, spelling)

    def _add(self, disease: str, spelling: str) -> None:
        for key in list_keys(spelling):
            entries = self._known.setdefault(key, [])
            if disease not in (known for known, _ in entries):
                entries.append((disease, spelling))
        self._longest = max(self._longest, min(_MOST_WORDS, len(_split(spelling)) + 2))

    def find(self, text: str) -> list[FoundName]:
        """Return the diseases that `text` names, each once, in the order of the text."""
        words = _split(text)
        found: dict[str, FoundName] = {}
        start = 0
        while start < len(words):
            end, entries = self._find_longest(words, start)
            for disease, name in entries:
                written = " ".join(word.written for word in words[start:end])
                found.setdefault(disease, FoundName(disease, name, written))
            start = max(end, start + 1)
        return list(found.values())

    def _find_longest(self, words: list[_Word], start: int) -> tuple[int, list[tuple[str, str]]]:
        """Return the end of the longest name that starts at word `start`, and its diseases; `start` without one."""
        if start and words[start - 1].key in _OTHER_BEFORE:
            return start, []
        best: tuple[int, list[tuple[str, str]]] = (start, [])
        key = ""
        for end in range(start + 1, min(len(words), start + self._longest) + 1):
            key = _append(key, words[end - 1].key)
            entries = self._known.get(key)
            if entries and not (end < len(words) and words[end].key in _OTHER_AFTER):
                written = "".join(word.written for word in words[start:end])
                fitting = [entry for entry in entries if not is_acronym(entry[1]) or _drop_marks(entry[1]) == written]
                best = (end, fitting) if fitting else best
        return best


def find_name(text: str, names: Iterable[str], acronyms: bool = True) -> str | None:
    """Return the name of one disease, of the given ones, that `text` contains first, or None.

    Example: find_name("A boy with Duchenne muscular dystrophy", ["Muscular dystrophy, Duchenne type"]) returns
    "Muscular dystrophy, Duchenne type".
    """
    found = _find_one_disease(tuple(names), acronyms).find(text)
    return found[0].name if found else None


@lru_cache(maxsize=4096)
def _find_one_disease(names: tuple[str, ...], acronyms: bool) -> NameFinder:
    return NameFinder({"": names}, acronyms)


def is_same_name(one: str, other: str) -> bool:
    """Return whether two names are spellings of the same name. Example: "Gout, primary" and "Primary gout"."""
    return not list_keys(one).isdisjoint(list_keys(other))


def is_acronym(name: str) -> bool:
    """Return whether `name` is one short word with several capitals, such as "CHF", "MEN1" or "SCID-X1"."""
    letters = re.sub(r"[^A-Za-z]", "", name)
    return len(name) <= 12 and " " not in name.strip() and sum(map(str.isupper, letters)) > len(letters) / 2


@lru_cache(maxsize=2**17)
def list_keys(name: str) -> frozenset[str]:
    """Return the keys of all spellings of `name`: texts that contain one of them, as whole words, contain the name.

    Two names are the same if they share a key. A name of fewer than three letters has none.
    """
    name = strip_markup(name)
    keys = {_join(_split(spelling)) for spelling in _list_orders(name)}
    return frozenset(key for key in keys if sum(map(str.isalpha, key)) >= _FEWEST_LETTERS)


def _list_orders(name: str) -> set[str]:
    """Return `name` with its parts in the orders in which they are written.

    Example: "Ciliary dyskinesia, primary, 26" -> also "primary Ciliary dyskinesia 26".
    """
    orders = {name}
    head, *rest = [part.strip() for part in name.split(",") if part.strip()] or [name]
    if rest and all(len(part.split()) <= 5 for part in rest):
        number = rest.pop() if _is_number(rest[-1]) else ""
        plain = [re.sub(r"\s+(?:type|form|variant|of)$", "", part) for part in rest]
        for parts in (rest, plain):
            orders |= {" ".join([*parts, head, number]), " ".join([*reversed(parts), head, number])}
        orders |= {" ".join([head, *plain, number]), " ".join([number, *plain, head])}
    if name.endswith(" deficiency"):
        orders.add(f"deficiency of {name.removesuffix(' deficiency')}")
    last = re.search(r" ([IVX][A-Ha-h]?)$", name)
    if last:  # "Mucopolysaccharidosis I": elsewhere, a single letter is not read as a number
        orders.add(f"{name[: last.start()]} type {last.group(1)}")
    return orders


def _is_number(part: str) -> bool:
    return re.fullmatch(r"(?:type\s+)?(?:\d+[A-Za-z]?|[IVX]+[A-Za-z]?)", part) is not None


@lru_cache(maxsize=256)
def _split(text: str) -> list[_Word]:
    """Return the words of `text` with their keys, without the word 'type' before a number or a single letter."""
    words: list[_Word] = []
    for written in _WORD.findall(_POSSESSIVE.sub("", _simplify(text))):
        before = words[-1].key if words else ""
        key = _fold(written, before)
        if before == "type" and (len(key) == 1 or key[0].isdigit()):
            words.pop()
        words.append(_Word(key, written))
    return words


def _simplify(text: str) -> str:
    """Return `text` without accents and invisible characters, and with the names of Greek letters."""
    if text.isascii():
        return text
    shown = "".join(character for character in text if unicodedata.category(character) != "Cf")
    spelled = "".join(_GREEK.get(character.lower(), character) for character in unicodedata.normalize("NFKC", shown))
    decomposed = unicodedata.normalize("NFKD", spelled)
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _drop_marks(name: str) -> str:
    return "".join(_WORD.findall(name))


def _fold(word: str, before: str) -> str:
    """Return the key of a word that follows the word with key `before`."""
    word = word.casefold()
    roman = _ROMAN.fullmatch(word)
    if roman and (len(roman.group(1)) > 1 or (roman.group(1) and before in _NUMBERED)):
        return f"{_read_roman(roman.group(1))}{roman.group(2)}"
    return _fold_spelling(word)


def _read_roman(number: str) -> int:
    values = [_DIGITS[letter] for letter in number]
    return sum(-value if value < max(values[place:]) else value for place, value in enumerate(values))


@lru_cache(maxsize=2**16)
def _fold_spelling(word: str) -> str:
    """Return `word` in the singular and in American spelling."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return word.replace("ae", "e").replace("oe", "e").replace("tumour", "tumor")


def _join(words: list[_Word]) -> str:
    key = ""
    for word in words:
        key = _append(key, word.key)
    return key


def _append(key: str, word: str) -> str:
    """Return `key` followed by `word`: without a space, but "1" and "2" do not become "12"."""
    return f"{key} {word}" if key and key[-1].isdigit() and word[0].isdigit() else key + word
