"""Which entries of HPO and Orphanet are one disease: their groups, by which the splits are made.

Evidence is used in this order:

1. Orphanet's cross-reference: the OMIM entry is the same disease.
2. The same name or synonym, in any spelling.
3. Orphanet's cross-reference to a broader or narrower OMIM entry, if it names no other disease and HPO agrees: a
   shared gene, or similar phenotypes.
4. The same family name: "Bardet-Biedl syndrome 1" and "Bardet-Biedl syndrome 2". An entry of OMIM that belongs to a
   disease of Orphanet by now has the family of that disease.
5. A shared gene and nearly the same phenotypes.

The order keeps groups small. With all evidence for all entries, numbered series of OMIM ("Immunodeficiency 27A") would
join hundreds of different diseases.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations

from medssr_dist.knowledge.hpo import load_diseases
from medssr_dist.knowledge.name_finder import is_acronym, list_keys
from medssr_dist.knowledge.names import derive_family
from medssr_dist.knowledge.orphanet import OrphanetEntry, load_orphanet

# Entries of Orphanet that are no disease; they would join different diseases.
GROUP_TYPES = frozenset({"Category", "Clinical group"})
# Jaccard similarity of the phenotypes, our choice: few of the pairs at the limit are different diseases.
_SIMILAR, _NEARLY_SAME = 0.2, 0.4
_FEWEST_PHENOTYPES = 3  # of an entry whose phenotypes are compared


def find_group(disease_id: str) -> str:
    """Return the group of an entry of HPO or Orphanet: the id of one of its members.

    Raises:
        KeyError: HPO and Orphanet have no entry with this id.
    """
    return load_groups()[disease_id]


def find_groups_by_name(names: Iterable[str]) -> frozenset[str]:
    """Return the groups that have an entry with one of `names`, in any spelling."""
    known = _index_names()
    return frozenset(find_group(entry) for name in names for key in list_keys(name) for entry in known.get(key, ()))


@cache
def load_groups() -> dict[str, str]:
    """Return entry -> group, for all entries of HPO and all diseases of Orphanet. Takes about 3 s, once a process."""
    joined = _Groups([*load_diseases(), *_list_orphanet()])
    joined.join(_pair_same_omim())
    joined.join(pair for entries in _index_names().values() for pair in _chain(entries))
    in_orphanet = joined.find_all(_list_orphanet())
    joined.join([pair for pair in _pair_related_omim() if joined.find(pair[1]) not in in_orphanet])
    in_orphanet = joined.find_all(_list_orphanet())
    unknown = {entry for entry in load_diseases() if joined.find(entry) not in in_orphanet}
    joined.join(pair for entries in _group_families(unknown) for pair in _chain(entries))
    joined.join(_pair_same_findings())
    return joined.name_groups()


class _Groups:
    """Disjoint sets of entries (union-find)."""

    def __init__(self, entries: Iterable[str]):
        self._above = {entry: entry for entry in entries}

    def find(self, entry: str) -> str:
        while self._above[entry] != entry:
            self._above[entry] = entry = self._above[self._above[entry]]
        return entry

    def find_all(self, entries: Iterable[str]) -> set[str]:
        return {self.find(entry) for entry in entries}

    def join(self, pairs: Iterable[tuple[str, str]]) -> None:
        for one, other in pairs:
            self._above[self.find(one)] = self.find(other)

    def name_groups(self) -> dict[str, str]:
        """Return entry -> its group, named by the member of Orphanet with the lowest number, or another member."""
        members: dict[str, list[str]] = defaultdict(list)
        for entry in self._above:
            members[self.find(entry)].append(entry)
        return {entry: min(found, key=_rank_id) for found in members.values() for entry in found}


def _rank_id(entry: str) -> tuple[bool, str, int]:
    source, number = entry.split(":")
    return source != "ORPHA", source, int(number)


def _chain(entries: list[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs that join all `entries`."""
    return ((entries[0], other) for other in entries[1:])


@cache
def _list_orphanet() -> dict[str, OrphanetEntry]:
    return {code: entry for code, entry in load_orphanet().items() if entry.type not in GROUP_TYPES}


@cache
def _index_names() -> dict[str, list[str]]:
    """Return key of a name -> the entries of HPO and Orphanet with this name or synonym."""
    found: dict[str, list[str]] = defaultdict(list)
    spellings = [(code, (entry.name, *entry.synonyms)) for code, entry in _list_orphanet().items()]
    spellings += [(disease.id, (disease.name,)) for disease in load_diseases().values()]
    for entry, names in spellings:
        for key in {key for name in names if not is_acronym(name) for key in list_keys(name)}:
            found[key].append(entry)
    return found


def _pair_same_omim() -> Iterator[tuple[str, str]]:
    """Yield pairs of an entry of Orphanet and the entry of HPO that has the OMIM code of the same disease."""
    known = load_diseases()
    return ((code, omim) for code, entry in _list_orphanet().items() for omim in entry.omim if omim in known)


def _pair_related_omim() -> list[tuple[str, str]]:
    """Return pairs with a broader or narrower OMIM entry that HPO's genes or phenotypes confirm."""
    references = Counter(omim for entry in _list_orphanet().values() for omim in entry.omim_related)
    return [
        (code, omim)
        for code, entry in _list_orphanet().items()
        for omim in entry.omim_related
        if references[omim] == 1
        and omim in load_diseases()
        and (not _genes(code).isdisjoint(_genes(omim)) or _compare_phenotypes(code, omim) >= _SIMILAR)
    ]


def _group_families(unknown: set[str]) -> Iterable[list[str]]:
    """Return the members of each family: entries of Orphanet, and `unknown` entries of HPO."""
    families: dict[str, list[str]] = defaultdict(list)
    for code, entry in _list_orphanet().items():
        families[derive_family(entry.name)].append(code)
    for disease in sorted(unknown - _list_orphanet().keys()):
        families[derive_family(load_diseases()[disease].name)].append(disease)
    return families.values()


def _pair_same_findings() -> Iterator[tuple[str, str]]:
    """Yield pairs of entries of HPO with a shared gene and nearly the same phenotypes."""
    by_gene: dict[str, list[str]] = defaultdict(list)
    for disease in load_diseases().values():
        if len(disease.phenotypes) >= _FEWEST_PHENOTYPES:
            for gene in disease.genes:
                by_gene[gene].append(disease.id)
    for entries in by_gene.values():
        for one, other in combinations(entries, 2):
            if _compare_phenotypes(one, other) >= _NEARLY_SAME:
                yield one, other


def _genes(entry: str) -> frozenset[str]:
    disease = load_diseases().get(entry)
    return frozenset(disease.genes) if disease else frozenset()


def _compare_phenotypes(one: str, other: str) -> float:
    """Return the Jaccard similarity of the phenotypes of two entries, 0 if HPO does not have both."""
    left, right = _phenotypes(one), _phenotypes(other)
    return len(left & right) / max(1, len(left | right))


@cache
def _phenotypes(entry: str) -> frozenset[str]:
    disease = load_diseases().get(entry)
    return frozenset(phenotype.id for phenotype in disease.phenotypes) if disease else frozenset()
