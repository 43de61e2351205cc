"""Passages, and the interface that every corpus has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a corpus. `source` is 'hpo', the `source` of its line, or the name of its file without suffix.

    Example: Passage("OMIM:203500", "Alkaptonuria", "Alkaptonuria is a rare disease. ...", "hpo")
    """

    id: str
    title: str
    content: str
    source: str

    @property
    def text(self) -> str:
        """Title, newline and content: the input of models that read one text."""
        return f"{self.title}\n{self.content}"


class Corpus(Sequence[Passage]):
    """A sequence of passages that can also be found by id. `hash` covers their contents and their order."""

    hash: str

    @abstractmethod
    def by_id(self, passage_id: str) -> Passage:
        """Return the passage with this id. Raises KeyError if there is none."""
