"""The corpora of a run: passages from HPO, files of any kind, and data sets of the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medssr_dist.config.synthesis import HPO_PASSAGES, MINI_PASSAGES, CorpusSource, Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus_copies import locate_passages, sample_rows
from medssr_dist.knowledge.corpus_files import FileCorpus, sample_file_passages
from medssr_dist.knowledge.hpo_passages import HpoCorpus, list_corpus_diseases
from medssr_dist.knowledge.mini_world import load_mini_world
from medssr_dist.knowledge.passages import Corpus, Passage


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus of a run. Its passages carry its name in their ids: "textbooks:Anatomy_Gray_0".

    Attributes:
        share: share of the passages of a prompt that is reserved for this corpus, 0 to 1.
    """

    name: str
    share: float
    passages: Corpus

    def read(self, row: int) -> Passage:
        """Return the passage of a row, with the name of the corpus in its id."""
        passage: Passage = self.passages[row]
        return replace(passage, id=f"{self.name}:{passage.id}")


def open_corpora(knowledge: Knowledge) -> list[NamedCorpus]:
    """Open all corpora of a run.

    Raises:
        InputError: a corpus cannot be used; the message names file and line.
    """
    return [
        NamedCorpus(source.name, source.share, read_corpus(_locate(source, knowledge))) for source in knowledge.corpora
    ]


def _locate(source: CorpusSource, knowledge: Knowledge) -> CorpusSource:
    """Return `source` with its path; a name alone is a folder of MedRAG's corpora."""
    if source.path:
        return source
    root = Path(knowledge.corpora_root).expanduser()
    folder = root / source.name / "chunk"
    if not folder.is_dir():
        raise InputError(
            f"knowledge.corpora has {source.name!r}, but {folder} is no folder; put MedRAG's corpus there "
            "(https://huggingface.co/MedRAG), give {name, path}, or set knowledge.corpora='[hpo]', which is embedded"
        )
    return source.model_copy(update={"path": str(folder)})


def read_corpus(source: CorpusSource) -> Corpus:
    """Open a corpus: 'hpo:passages', 'hpo:mini-passages', or files (FileCorpus, on a copy if they are no plain JSONL).

    Raises:
        InputError: the corpus cannot be used; the message names file and line.
    """
    if source.path == HPO_PASSAGES:
        return HpoCorpus(list_corpus_diseases(source.limit))
    if source.path == MINI_PASSAGES:
        return HpoCorpus(load_mini_world().diseases[: source.limit or None])
    if source.path.startswith("hpo:"):
        raise InputError(
            f"knowledge.corpora has {source.path!r}, which is not an embedded corpus; use {HPO_PASSAGES} or "
            f"{MINI_PASSAGES}"
        )
    files = locate_passages(source)
    try:
        return FileCorpus(files.path, source.limit)
    except InputError as error:
        raise InputError(str(error).replace(str(files.path), files.where)) from None


def sample_passages(knowledge: Knowledge, count: int) -> list[Passage]:
    """Return the first `count` passages of each corpus of a run; big files are not read to their end.

    Raises:
        InputError: a corpus cannot be used; the message names file and line.
    """
    found: list[Passage] = []
    for source in (_locate(each, knowledge) for each in knowledge.corpora):
        if source.path.startswith("hpo:"):
            found += read_corpus(source)[:count]
        elif (rows := sample_rows(source, count)) is not None:
            found += rows
        else:
            found += sample_file_passages(locate_passages(source).path, count)
    return found


def find_passage(corpora: list[NamedCorpus], passage_id: str) -> Passage:
    """Return the passage with this id, which starts with the name of its corpus. Raises KeyError if there is none."""
    name, _, own_id = passage_id.partition(":")
    for corpus in corpora:
        if corpus.name == name:
            return replace(corpus.passages.by_id(own_id), id=passage_id)
    raise KeyError(passage_id)
