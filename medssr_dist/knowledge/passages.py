"""What a corpus is made of, and what every corpus can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a corpus. `source` names where it is from ('hpo', or the file's name).

    Example: Passage("OMIM:203500", "Alkaptonuria", "Alkaptonuria is a rare disease. ...", "hpo")
    """

    id: str
    title: str
    content: str
    source: str

    @property
    def text(self) -> str:
        """Title, newline, content: what single-text models read."""
        return f"{self.title}\n{self.content}"


class Corpus(Sequence[Passage]):
    """Passages by row, and by id. `hash` covers all that they hold, in order."""

    hash: str

    @abstractmethod
    def by_id(self, passage_id: str) -> Passage:
        """The passage of that id. Raises KeyError."""
