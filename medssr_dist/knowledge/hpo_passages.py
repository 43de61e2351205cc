"""The embedded corpus: several passages about each rare disease, written from HPO's annotations.

A disease has a passage on its course (names, prevalence, onset and most frequent features), one or two on its findings
by organ system, and one on inheritance and genes, where HPO has them. Each has the disease's name as title.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from medssr_dist.data.records import hash_content
from medssr_dist.knowledge.hpo import Disease, Phenotype, find_ancestors, load_terms
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.orphanet import load_orphanet
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.rare_diseases import load_rare_diseases
from medssr_dist.knowledge.splits import is_evaluation

# Our choice: with up to 15 findings, a passage has about 600 characters, and a prompt with three about 2 KB.
MAX_FINDINGS = 15
_FINDINGS_PASSAGES = 2
_MOST_FREQUENT = 8  # phenotypes in the passage on the course
_MOST_SYNONYMS = 3
# HPO's frequency bands, by the lowest share of patients.
_BANDS = ((0.80, "very frequent"), (0.30, "frequent"), (0.05, "occasional"), (0.0, "rare"))
_UNSTATED = "reported"
_ROOT = "HP:0000118"


class HpoCorpus(Corpus):
    """The passages about `diseases`, held in memory; those about all rare diseases are some ten thousand."""

    def __init__(self, diseases: Iterable[Disease]):
        self._passages = [passage for disease in diseases for passage in describe_disease(disease)]
        self._by_id = {passage.id: passage for passage in self._passages}
        self.hash = hash_content([(p.id, p.title, p.content, p.source) for p in self._passages])

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, item: int | slice) -> Any:
        return self._passages[item]

    def by_id(self, passage_id: str) -> Passage:
        return self._by_id[passage_id]


def list_corpus_diseases(limit: int = 0) -> list[Disease]:
    """Return the first `limit` (0 = all) diseases of the corpus in its order: evaluation diseases last.

    So a limit keeps diseases that entities are drawn from.
    """
    ordered = sorted(load_rare_diseases(), key=is_evaluation)
    return ordered[: limit or None]


def describe_disease(disease: Disease) -> list[Passage]:
    """Return the passages about `disease`. Each id is the disease's id and the part: "ORPHA:56/findings".

    Example of contents: "Alkaptonuria (also called Hereditary ochronosis) is a rare disease. Onset: adult. Very
    frequent features are arthritis; back pain." - "Findings in Alkaptonuria, by organ system. Genitourinary system:
    dark urine (frequent)." - "Inheritance of Alkaptonuria: autosomal recessive. Associated genes: HGD."
    """
    parts = {"course": _describe_course(disease)}
    for number, text in enumerate(_describe_findings(disease), start=1):
        parts["findings" if number == 1 else f"findings-{number}"] = text
    if disease.inheritance or disease.genes:
        parts["genes"] = _describe_genes(disease)
    return [Passage(f"{disease.id}/{part}", disease.name, text, "hpo") for part, text in parts.items()]


def _describe_course(disease: Disease) -> str:
    names = ", ".join(disease.synonyms[:_MOST_SYNONYMS])
    sentences = [f"{disease.name}{f' (also called {names})' if names else ''} is a rare disease."]
    entry = load_orphanet().get(disease.id)
    if entry and entry.prevalence:
        sentences.append(f"Prevalence: {' or '.join(entry.prevalence)}.")
    if disease.onset:
        sentences.append(f"Onset: {_join_names(disease.onset, ' onset')}.")
    groups: dict[str, list[str]] = {}
    for phenotype in disease.phenotypes[:_MOST_FREQUENT]:
        groups.setdefault(_find_band(phenotype), []).append(decapitalize(phenotype.name))
    sentences += [f"{band.capitalize()} features are {'; '.join(names)}." for band, names in groups.items()]
    return " ".join(sentences)


def _describe_findings(disease: Disease) -> list[str]:
    """Return one or two texts of at most MAX_FINDINGS findings each: the most frequent ones, by organ system."""
    shown = disease.phenotypes[: _FINDINGS_PASSAGES * MAX_FINDINGS]
    listed = [(system, phenotype) for system, group in _group_by_system(shown).items() for phenotype in group]
    parts = [listed[start : start + MAX_FINDINGS] for start in range(0, len(listed), MAX_FINDINGS)]
    opening = f"Findings in {disease.name}, by organ system."
    return [
        " ".join([opening, *(_describe_system(*group) for group in groupby(part, key=itemgetter(0)))]) for part in parts
    ]


def _describe_system(system: str, listed: Iterable[tuple[str, Phenotype]]) -> str:
    findings = "; ".join(f"{decapitalize(phenotype.name)} ({_find_band(phenotype)})" for _, phenotype in listed)
    return f"{system}: {findings}."


def _group_by_system(phenotypes: Sequence[Phenotype]) -> dict[str, list[Phenotype]]:
    """Return organ system -> its phenotypes by decreasing frequency; systems with most phenotypes first.

    A phenotype of several systems is listed under the one that has most of the phenotypes.
    """
    sizes = Counter(system for phenotype in phenotypes for system in _list_systems(phenotype.id))
    groups: dict[str, list[Phenotype]] = {}
    for phenotype in phenotypes:
        systems = _list_systems(phenotype.id) or ("Other",)
        groups.setdefault(min(systems, key=lambda system: (-sizes[system], system)), []).append(phenotype)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


@cache
def _list_systems(term: str) -> tuple[str, ...]:
    """Return the organ systems of a term, such as ("Nervous system",) for a seizure."""
    above = find_ancestors(term) | {term}
    names = [load_terms().names[system] for system in load_terms().children[_ROOT] if system in above]
    return tuple(_name_system(name) for name in names)


def _name_system(branch: str) -> str:
    """Return the organ system in the name of a top branch: "Abnormality of the eye" -> "Eye"."""
    name = branch.removeprefix("Abnormality of ").removeprefix("the ")
    return name[:1].upper() + name[1:]


def _describe_genes(disease: Disease) -> str:
    sentences = []
    if disease.inheritance:
        sentences.append(f"Inheritance of {disease.name}: {_join_names(disease.inheritance, ' inheritance')}.")
    if disease.genes:
        opening = "" if sentences else f"Genes of {disease.name}. "
        sentences.append(f"{opening}Associated genes: {', '.join(disease.genes)}.")
    return " ".join(sentences)


def _find_band(phenotype: Phenotype) -> str:
    if not phenotype.stated:
        return _UNSTATED
    return next(name for lowest, name in _BANDS if phenotype.frequency >= lowest)


def _join_names(names: tuple[str, ...], suffix: str) -> str:
    return ", ".join(decapitalize(name.removesuffix(suffix)) for name in names)
