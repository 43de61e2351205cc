"""Passages: one a rare disease written from HPO, or those of a JSONL corpus in MedRAG form.

`hpo:passages` lists the diseases that may be synthesis entities first, the evaluation diseases last,
each group in a fixed mixed order: a `limit` keeps diseases that entities are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medssr_dist.config import DataSource
from medssr_dist.errors import InputError
from medssr_dist.jsonl import read_jsonl
from medssr_dist.knowledge.hpo import Disease, Phenotype, rare_diseases
from medssr_dist.knowledge.names import in_sentence
from medssr_dist.knowledge.splits import is_evaluation
from medssr_dist.records import content_hash

HPO_PASSAGES = "hpo:passages"
# Ours: the most frequent ones; about 800 characters, so that three passages keep a prompt near 2.5 KB.
MAX_PHENOTYPES = 20
# HPO's frequency bands, by lowest share of patients.
_BANDS = ((0.80, "Very frequent"), (0.30, "Frequent"), (0.05, "Occasional"), (0.0, "Rare"))
_UNSTATED = "Other reported"


@dataclass(frozen=True)
class Passage:
    """A piece of a corpus. `source` names where it is from ('hpo', or the file's name).

    Example: Passage("OMIM:203500", "Alkaptonuria", "Alkaptonuria is a rare disease. ...", "hpo")
    """

    id: str
    title: str
    content: str
    source: str


def read_corpus(source: DataSource) -> list[Passage]:
    """The passages of `source`: 'hpo:passages', or a JSONL file with id, title and content.

    A line's `source`, where it has one (MedQuAD), is put before its id: ids are unique within a source.
    Other fields (MedRAG's `contents`, MedQuAD's `question` and `url`) are not used. `limit` takes the first N.

    Raises:
        InputError: empty corpus, duplicate id, missing or empty field, not UTF-8, not JSON.
    """
    if source.path == HPO_PASSAGES:
        return [disease_passage(disease) for disease in corpus_diseases(source.limit)]
    if source.path.startswith("hpo:"):
        raise InputError(f"knowledge.corpus.path {source.path!r} is not an embedded corpus; use {HPO_PASSAGES}")
    return _read_file(Path(source.path), source.limit)


def corpus_diseases(limit: int = 0) -> list[Disease]:
    """The diseases of 'hpo:passages' in corpus order, evaluation diseases last; limit 0 = all."""
    ordered = sorted(rare_diseases(), key=is_evaluation)
    return ordered[: limit or None]


def corpus_hash(passages: Sequence[Passage]) -> str:
    """Hash of all that the passages hold, in order."""
    return content_hash([(passage.id, passage.title, passage.content, passage.source) for passage in passages])


def disease_passage(disease: Disease) -> Passage:
    """One passage in prose: phenotypes by falling frequency in HPO's frequency words, onset, inheritance, genes.

    Example: "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis. ...
    Inheritance: autosomal recessive. Associated genes: HGD."
    """
    sentences = [f"{disease.name} is a rare disease."]
    groups: dict[str, list[str]] = {}
    for phenotype in disease.phenotypes[:MAX_PHENOTYPES]:
        groups.setdefault(_band(phenotype), []).append(in_sentence(phenotype.name))
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
    return ", ".join(in_sentence(name.removesuffix(suffix)) for name in names)


def _read_file(path: Path, limit: int) -> list[Passage]:
    passages: dict[str, Passage] = {}
    for number, row in enumerate(islice(read_jsonl(path), limit or None), start=1):
        passage = _parse_row(row, f"{path} line {number}", path.stem)
        if passage.id in passages:
            raise InputError(f"{path} line {number}: id {passage.id!r} stands twice; make ids unique")
        passages[passage.id] = passage
    if not passages:
        raise InputError(f"{path} holds no passages; give a JSONL file with id, title and content, or {HPO_PASSAGES}")
    return list(passages.values())


def _parse_row(row: dict, where: str, source: str) -> Passage:
    fields = {name: ("" if row.get(name) is None else str(row[name])).strip() for name in ("id", "title", "content")}
    empty = [name for name, value in fields.items() if not value]
    if empty:
        raise InputError(
            f"{where} (id {fields['id'] or None!r}): no {' and no '.join(empty)}; each line needs id, title and content"
        )
    if row.get("source"):
        source = str(row["source"])
        fields["id"] = f"{source}:{fields['id']}"
    return Passage(**fields, source=source)
