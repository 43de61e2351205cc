"""Orphanet's nomenclature of rare diseases: names, synonyms, types, OMIM codes and prevalence.

The table in data/orphanet.tsv.gz holds Orphanet's facts unchanged. Its first lines give source, licence and version.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ORPHANET_CITATION = "Orphanet 2025, CC BY 4.0, https://www.orphadata.com"
_VERSION = "#version:"
_COLUMNS = 7


@dataclass(frozen=True, slots=True)
class OrphanetEntry:
    """An entry of the nomenclature: a disease, a subtype of one, or a group of diseases.

    Attributes:
        type: Orphanet's type, such as "Disease", "Clinical subtype" or "Category".
        omim: codes of the OMIM entries that are the same disease.
        omim_related: codes of OMIM entries that are a broader or a narrower disease.
        prevalence: classes of point prevalence, such as ("1-9 / 100 000",); () if Orphanet gives none.

    Example: OrphanetEntry("ORPHA:56", "Alkaptonuria", "Disease", ("Hereditary ochronosis",), ("OMIM:203500",), (),
    ("1-9 / 1 000 000",))
    """

    id: str
    name: str
    type: str
    synonyms: tuple[str, ...]
    omim: tuple[str, ...]
    omim_related: tuple[str, ...]
    prevalence: tuple[str, ...]


@cache
def load_orphanet() -> dict[str, OrphanetEntry]:
    """Return all entries of the nomenclature by ORPHA code."""
    entries = {}
    for line in _read_lines()[1:]:
        code, name, kind, *lists = line.split("\t", _COLUMNS - 1)
        parts = [tuple(" ".join(item.split()) for item in text.split("|") if item) for text in lists]
        entries[code] = OrphanetEntry(code, " ".join(name.split()), kind, *parts)
    return entries


def read_orphanet_version() -> str:
    """Return year and month of the nomenclature, such as '2025-12'."""
    line = next(line for line in _read_table() if line.startswith(_VERSION))
    return line.removeprefix(_VERSION).strip()


@cache
def load_word_cases() -> dict[str, str]:
    """Return lower-case word -> its spelling, for the words that Orphanet always writes with capitals inside.

    Example: "dna" -> "DNA", "mcleod" -> "McLeod", "iga" -> "IgA".
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in load_orphanet().values():
        for name in (entry.name, *entry.synonyms):
            for word in re.findall(r"[A-Za-z0-9]+", name):
                spellings[word.lower()][word] += 1
    return {
        word: found.most_common(1)[0][0]
        for word, found in spellings.items()
        if all(re.search(r"[A-Z]", spelling[1:]) for spelling in found) and word not in _PLAIN_WORDS
    }


# Acronyms of Orphanet that are words of OMIM's names.
_PLAIN_WORDS = frozenset({"pole", "kb", "car"})


def _read_lines() -> list[str]:
    return [line for line in _read_table() if not line.startswith("#")]


@cache
def _read_table() -> tuple[str, ...]:
    table = files("medssr_dist.knowledge").joinpath("data/orphanet.tsv.gz")
    return tuple(gzip.decompress(table.read_bytes()).decode("utf-8").splitlines())
