"""The two kinds of corpus: one passage per rare disease, written from HPO, and JSONL files in MedRAG's format.

`hpo:passages` lists the diseases that may become synthesis entities first and the evaluation diseases last, each
group in a fixed shuffled order. So a `limit` keeps diseases that entities are drawn from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus_files import FileCorpus
from medssr_dist.knowledge.hpo import Disease, Phenotype
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.rare_diseases import load_rare_diseases
from medssr_dist.knowledge.splits import is_evaluation

HPO_PASSAGES = "hpo:passages"
# Our choice: the most frequent ones, about 800 characters; a prompt with three passages is then near 2.5 KB.
MAX_PHENOTYPES = 20
# HPO's frequency bands, by the lowest share of patients.
_BANDS = ((0.80, "Very frequent"), (0.30, "Frequent"), (0.05, "Occasional"), (0.0, "Rare"))
_UNSTATED = "Other reported"


def read_corpus(source: DataSource) -> Corpus:
    """Open the corpus of `source`: 'hpo:passages', a JSONL file, or a folder of such files (see FileCorpus).

    Raises:
        InputError: the corpus cannot be used; the message names file and line.
    """
    if source.path == HPO_PASSAGES:
        return _HpoCorpus(source.limit)
    if source.path.startswith("hpo:"):
        raise InputError(f"knowledge.corpus.path {source.path!r} is not an embedded corpus; use {HPO_PASSAGES}")
    return FileCorpus(Path(source.path).expanduser(), source.limit)


class _HpoCorpus(Corpus):
    """One passage per rare disease: a few thousand, held in memory."""

    def __init__(self, limit: int):
        self._passages = [describe_disease(disease) for disease in list_corpus_diseases(limit)]
        self._by_id = {passage.id: passage for passage in self._passages}
        self.hash = hash_content([(p.id, p.title, p.content, p.source) for p in self._passages])

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, item: int | slice) -> Any:
        return self._passages[item]

    def by_id(self, passage_id: str) -> Passage:
        return self._by_id[passage_id]


def list_corpus_diseases(limit: int = 0) -> list[Disease]:
    """Return the first `limit` (0 = all) diseases of 'hpo:passages' in corpus order, evaluation diseases last."""
    ordered = sorted(load_rare_diseases(), key=is_evaluation)
    return ordered[: limit or None]


def describe_disease(disease: Disease) -> Passage:
    """Return a passage about `disease` in prose: phenotypes by decreasing frequency, onset, inheritance, genes.

    Example: "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis. ...
    Inheritance: autosomal recessive. Associated genes: HGD."
    """
    sentences = [f"{disease.name} is a rare disease."]
    groups: dict[str, list[str]] = {}
    for phenotype in disease.phenotypes[:MAX_PHENOTYPES]:
        groups.setdefault(_find_band(phenotype), []).append(decapitalize(phenotype.name))
    sentences += [f"{band} features are {'; '.join(names)}." for band, names in groups.items()]
    if disease.onset:
        sentences.append(f"Onset: {_join_names(disease.onset, ' onset')}.")
    if disease.inheritance:
        sentences.append(f"Inheritance: {_join_names(disease.inheritance, ' inheritance')}.")
    if disease.genes:
        sentences.append(f"Associated genes: {', '.join(disease.genes)}.")
    return Passage(disease.id, disease.name, " ".join(sentences), "hpo")


def _find_band(phenotype: Phenotype) -> str:
    if not phenotype.stated:
        return _UNSTATED
    return next(name for lowest, name in _BANDS if phenotype.frequency >= lowest)


def _join_names(names: tuple[str, ...], suffix: str) -> str:
    return ", ".join(decapitalize(name.removesuffix(suffix)) for name in names)
