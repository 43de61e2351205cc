"""What the parsers of replies and the checks of questions hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rejection(NamedTuple):
    """Why a reply does not become a question.

    `reason` is a short machine-readable word that is counted; `detail` is the evidence.

    Example: Rejection("option_count", "1 options; a question has 2-10")
    """

    reason: str
    detail: str


class Draft(NamedTuple):
    """The question in a reply, with the options in the reply's order.

    Example: Draft("Which vitamin prevents scurvy?", ("Vitamin A", "Vitamin C"))
    """

    stem: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class RawQuestion:
    """A question as written in a reply, before labels are taken off and anything is checked.

    Attributes:
        stem, options: their texts; an option is "" where the reply has no text for it.
        leak: the part of the reply's structure that tells the answer, such as a key "answer"; "" if there is none.
        rest: the text outside the question in which the answer could be told too.

    Example: RawQuestion("Which vitamin prevents scurvy?", ("A. Vitamin A", "B. Vitamin C"), leak="", rest="Good luck!")
    """

    stem: str
    options: tuple[str, ...]
    leak: str = ""
    rest: str = ""


class RejectedReply(Exception):
    """Raised where a parser finds that a reply is no question."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.rejection = Rejection(reason, detail)
