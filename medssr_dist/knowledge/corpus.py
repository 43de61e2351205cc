"""Passages: one a rare disease written from HPO, or those of JSONL files in MedRAG form.

`hpo:passages` lists the diseases that may be synthesis entities first, the evaluation diseases last,
each group in a fixed mixed order: a `limit` keeps diseases that entities are drawn from.
"""

from __future__ import annotations

from pathlib import Path

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus_files import FileCorpus
from medssr_dist.knowledge.hpo import Disease, Phenotype, load_rare_diseases
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.splits import is_evaluation

HPO_PASSAGES = "hpo:passages"
# Ours: the most frequent ones; about 800 characters, so that three passages keep a prompt near 2.5 KB.
MAX_PHENOTYPES = 20
# HPO's frequency bands, by lowest share of patients.
_BANDS = ((0.80, "Very frequent"), (0.30, "Frequent"), (0.05, "Occasional"), (0.0, "Rare"))
_UNSTATED = "Other reported"


def read_corpus(source: DataSource) -> Corpus:
    """The passages of `source`: 'hpo:passages', a JSONL file, or a folder of such files (see FileCorpus).

    Raises:
        InputError: a corpus that cannot be used; names file and line.
    """
    if source.path == HPO_PASSAGES:
        return _HpoCorpus(source.limit)
    if source.path.startswith("hpo:"):
        raise InputError(f"knowledge.corpus.path {source.path!r} is not an embedded corpus; use {HPO_PASSAGES}")
    return FileCorpus(Path(source.path).expanduser(), source.limit)


class _HpoCorpus(Corpus):
    """One passage a rare disease; a few thousand, held in memory."""

    def __init__(self, limit: int):
        self._passages = [describe_disease(disease) for disease in list_corpus_diseases(limit)]
        self._by_id = {passage.id: passage for passage in self._passages}
        self.hash = hash_content([(p.id, p.title, p.content, p.source) for p in self._passages])

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, item):
        return self._passages[item]

    def by_id(self, passage_id: str) -> Passage:
        return self._by_id[passage_id]


def list_corpus_diseases(limit: int = 0) -> list[Disease]:
    """The diseases of 'hpo:passages' in corpus order, evaluation diseases last; limit 0 = all."""
    ordered = sorted(load_rare_diseases(), key=is_evaluation)
    return ordered[: limit or None]


def describe_disease(disease: Disease) -> Passage:
    """One passage in prose: phenotypes by falling frequency in HPO's frequency words, onset, inheritance, genes.

    Example: "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis. ...
    Inheritance: autosomal recessive. Associated genes: HGD."
    """
    sentences = [f"{disease.name} is a rare disease."]
    groups: dict[str, list[str]] = {}
    for phenotype in disease.phenotypes[:MAX_PHENOTYPES]:
        groups.setdefault(_band(phenotype), []).append(decapitalize(phenotype.name))
    sentences += [f"{band} features are {'; '.join(names)}." for band, names in groups.items()]
    if disease.onset:
        sentences.append(f"Onset: {_join(disease.onset, ' onset')}.")
    if disease.inheritance:
        sentences.append(f"Inheritance: {_join(disease.inheritance, ' inheritance')}.")
    if disease.genes:
        sentences.append(f"Associated genes: {', '.join(disease.genes)}.")
    return Passage(disease.id, disease.name, " ".join(sentences), "hpo")


def _band(phenotype: Phenotype) -> str:
    if not phenotype.stated:
        return _UNSTATED
    return next(name for lowest, name in _BANDS if phenotype.frequency >= lowest)


def _join(names: tuple[str, ...], suffix: str) -> str:
    return ", ".join(decapitalize(name.removesuffix(suffix)) for name in names)
