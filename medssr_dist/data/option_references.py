"""Options that refer to other options by their place, such as 'all of the above' or 'A and C'."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LETTER = r"(?:(?:option|choice|answer)s? )?\(?[a-e1-5]\)?"
_ALL_OR_NONE = re.compile(
    r"\b(?:all|none|both|neither|any|either|some|two|more than one) (?:of )?(?:the )?"
    r"(?:above|(?:other |above )?(?:options|choices|answers)|others)\b|"
    r"^(?:all|none|both|neither|any|either) of (?:these|them|the following)\W*$|"
    rf"^(?:both |either |neither |only )?{_LETTER}(?:,? (?:and|or|nor|&) |, ){_LETTER}(?:,? (?:and |or |& )?{_LETTER})*"
    r"(?: only| both)?\W*$",
    re.IGNORECASE,
)


def find_reference(options: Iterable[str]) -> str | None:
    """Return the first option that refers to others by their place; None if there is none."""
    return next(filter(_ALL_OR_NONE.search, options), None)
