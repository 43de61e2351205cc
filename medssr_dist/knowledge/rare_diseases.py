"""The list of rare diseases: Orphanet's diseases, which are rare by definition, with the annotations of HPO.

A disease of Orphanet has the annotations of its own entry in HPO, and of the entries of OMIM that are the same disease
by Orphanet's cross-reference or by name. Other entries of OMIM are left out, because OMIM also lists common diseases,
such as Alzheimer disease and colorectal cancer. `RareList.left_out` counts what is left out, by reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from medssr_dist.data.records import hash_content
from medssr_dist.knowledge.hpo import Disease, load_diseases, read_hpo_version
from medssr_dist.knowledge.identity import GROUP_TYPES
from medssr_dist.knowledge.name_finder import is_acronym, list_keys
from medssr_dist.knowledge.names import is_clean
from medssr_dist.knowledge.orphanet import OrphanetEntry, load_orphanet, read_orphanet_version

# Our choice: fewer phenotypes make a short passage, and a vignette that fits several diseases.
MIN_PHENOTYPES = 5
# Orphanet calls a disease rare if at most 5 of 10,000 people have it.
_COMMON = frozenset({"6-9 / 10 000", ">1 / 1000"})
# Preeclampsia is in a low class of point prevalence, but happens in several of 100 pregnancies.
_COMMON_ENTRIES = frozenset({"ORPHA:275555"})
_DISEASE_TYPES = frozenset({"Disease", "Malformation syndrome", "Clinical syndrome", "Morphological anomaly"})
_SUBTYPES = frozenset({"Clinical subtype", "Etiological subtype", "Histopathological subtype"})


@dataclass(frozen=True)
class RareList:
    """The list of rare diseases.

    Attributes:
        version: releases of Orphanet and HPO that it is made from.
        diseases: in an order by a hash of the id: shuffled, and the same on every machine.
        left_out: reason -> entries of Orphanet and OMIM that are left out.

    Example: RareList("Orphanet 2025-12, HPO 2025-01-16", (disease, ...), {"Orphanet: a group of diseases": 2236})
    """

    version: str
    diseases: tuple[Disease, ...]
    left_out: dict[str, int]


@cache
def load_rare_list() -> RareList:
    """Return all rare diseases, also those without phenotypes in HPO. Takes about 5 s, once per process."""
    left_out: Counter[str] = Counter()
    diseases: list[Disease] = []
    annotated: set[str] = set()
    for code, entry in load_orphanet().items():
        sources = find_annotations(code)
        if reason := _refuse(entry):
            left_out[f"Orphanet: {reason}"] += 1
        else:
            diseases.append(_merge(entry, sources))
            annotated.update(source.id for source in sources)
    for code in load_diseases():
        if code.startswith("OMIM:") and code not in annotated:
            left_out["OMIM: no disease of this list by Orphanet's cross-reference or by name"] += 1
    version = f"Orphanet {read_orphanet_version()}, HPO {read_hpo_version()}"
    ordered = sorted(diseases, key=lambda disease: hash_content(disease.id))
    return RareList(version, tuple(ordered), dict(sorted(left_out.items())))


@cache
def load_rare_diseases() -> tuple[Disease, ...]:
    """Return the rare diseases with at least MIN_PHENOTYPES phenotypes in HPO, in the order of the list."""
    return tuple(disease for disease in load_rare_list().diseases if len(disease.phenotypes) >= MIN_PHENOTYPES)


@cache
def find_annotations(code: str) -> tuple[Disease, ...]:
    """Return the entries of HPO that are the disease with this ORPHA code, () for another code.

    Its own entry comes first, then the others by decreasing number of phenotypes.
    """
    entry = load_orphanet().get(code)
    if entry is None:
        return ()
    same = {source for source in (code, *entry.omim) if source in load_diseases()}
    for name in (entry.name, *entry.synonyms):
        if not is_acronym(name):
            same.update(source for key in list_keys(name) for source in _index_omim_names().get(key, ()))
    found = [load_diseases()[source] for source in same]
    return tuple(sorted(found, key=lambda disease: (disease.id != code, -len(disease.phenotypes), disease.id)))


def _refuse(entry: OrphanetEntry) -> str | None:
    """Return why `entry` is not in the list, or None."""
    if entry.type in GROUP_TYPES:
        return "a group of diseases"
    if entry.type in _SUBTYPES:
        return "a subtype of a disease"
    if entry.type not in _DISEASE_TYPES:
        return "an anomaly or a situation, not a disease"
    if entry.id in _COMMON_ENTRIES or not _COMMON.isdisjoint(entry.prevalence):
        return "not rare by its prevalence"
    if not is_clean(entry.name):
        return "a susceptibility, or a name of more than 80 characters"
    return None


@cache
def _index_omim_names() -> dict[str, list[str]]:
    """Return key of a name -> ids of the OMIM entries with this name that no disease of Orphanet refers to."""
    referred = {omim for entry in load_orphanet().values() for omim in entry.omim}
    found: dict[str, list[str]] = defaultdict(list)
    for disease in load_diseases().values():
        if disease.id.startswith("OMIM:") and disease.id not in referred:
            for key in list_keys(disease.name):
                found[key].append(disease.id)
    return found


def _merge(entry: OrphanetEntry, sources: tuple[Disease, ...]) -> Disease:
    """Return the disease of `entry`, with the annotations of `sources`.

    The phenotypes are those of the first source with at least MIN_PHENOTYPES, or of the one with most: entries count
    them differently, so their frequencies are not mixed.
    """
    named = Disease(entry.id, entry.name, (), (), (), (), entry.synonyms)
    if not sources:
        return named
    rich = [source for source in sources if len(source.phenotypes) >= MIN_PHENOTYPES]
    best = rich[0] if rich else max(sources, key=lambda source: len(source.phenotypes))
    return replace(
        named,
        phenotypes=best.phenotypes,
        genes=_unite(source.genes for source in sources),
        inheritance=_unite(source.inheritance for source in sources),
        onset=_unite(source.onset for source in sources),
    )


def _unite(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({item for part in parts for item in part}))
