"""Which questions are about a rare disease: as the data set says, or marked by the names of the rare list.

`auto` marks a question whose stem or right option names a disease of the list of rare diseases
(knowledge.rare_diseases), in any spelling of its name or synonyms. Not a mark are:

- short acronyms: CSF is a name of Crow-Fukase syndrome, and PPD of a skin disease;
- names that usually mean something else ("malleus", "silver staining");
- a vaccine, a gene or a virus with the name of the disease, and what a patient does not have ("no history of ...",
  "family history of ...").

Seen on eight of the paper's files (6,167 questions): see docs/benchmarks.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.name_finder import NameFinder, is_acronym, list_keys
from medssr_dist.knowledge.rare_diseases import load_rare_list
from medssr_dist.readers.named_columns import get_column, has_column

_FEWEST_CAPITALS = 5  # of a name in capitals; four are often a method (VATS) or a test (TPHA)
_OTHER_MEANINGS = frozenset({"malleus", "silver staining", "midline heart"})
_SENTENCE_END = re.compile(r"(?<=[.?!;])\s+|\n+")
_VACCINE = re.compile(r"vaccin|immuni[sz]|toxoid|booster|\bshots?\b", re.IGNORECASE)
_NOT_THE_DISEASE = r"[\s\-]*(?:\(\w+\)\s*)?(?:gene|protein|CoV|virus|antigen|tumou?r suppressor)"
_NOT_THE_PATIENT = re.compile(
    r"\b(?:no|not|without|denies|denied|negative for|rules? out|ruled out|never had)\b[^,;:]{0,30}$|"
    r"\bfamily history\b[^;:]{0,60}$",
    re.IGNORECASE,
)
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def mark_rare(question: Question, rare: bool | str | None, row: Mapping[str, Any]) -> Question:
    """Return `question` with `rare`, `rare_disease` and `rare_by` set as a data source's `rare` asks.

    Args:
        rare: true, false, 'auto', or a column of the data set; None leaves the question as it is.
        row: the item of the file, for the column.

    Raises:
        InputError: the column is absent or neither true nor false.
    """
    if rare is None:
        return question
    if isinstance(rare, bool):
        return question.model_copy(update={"rare": rare, "rare_by": "source"})
    if rare != "auto":
        return question.model_copy(update={"rare": _read_column(rare, row), "rare_by": "column"})
    disease = find_rare_disease(question)
    return question.model_copy(update={"rare": disease is not None, "rare_by": "auto", "rare_disease": disease})


def find_rare_disease(question: Question) -> str | None:
    """Return the name (as in the list) of the rare disease that the right option or the stem names, or None."""
    asked = _SENTENCE_END.split(question.stem)[-1]
    right = question.options[question.truth] if question.truth and not _VACCINE.search(asked) else ""
    return _find_whole(right) or _find_in_text(right) or _find_in_text(question.stem)


def _find_whole(option: str) -> str | None:
    """Return the disease whose name the whole option is, inverted names ("Dystrophy, muscular") included."""
    known = _load_names()
    return next((known.by_key[key] for key in sorted(list_keys(option)) if key in known.by_key), None)


def _find_in_text(text: str) -> str | None:
    sentences = (sentence for sentence in _SENTENCE_END.split(text) if not _VACCINE.search(sentence))
    return next((name for sentence in sentences if (name := _find_in_sentence(sentence)) is not None), None)


def _find_in_sentence(sentence: str) -> str | None:
    known = _load_names()
    for found in known.finder.find(sentence):
        place = re.search(r"\W+".join(map(re.escape, found.text.split())), sentence)
        if place is None:  # the text has accents or apostrophes within the name
            return known.names[found.id]
        after, before = sentence[place.end() :], sentence[: place.start()]
        if not re.match(_NOT_THE_DISEASE, after) and not _NOT_THE_PATIENT.search(before):
            return known.names[found.id]
    return None


@dataclass(frozen=True)
class _RareNames:
    """The names of the rare list: the finder of them in texts, disease id -> name, and key of a name -> name."""

    finder: NameFinder
    names: dict[str, str]
    by_key: dict[str, str]


@cache
def _load_names() -> _RareNames:
    """Return the names of the rare list. Takes about 6 s, once per process."""
    spellings: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    by_key: dict[str, str] = {}
    for disease in load_rare_list().diseases:
        names[disease.id] = disease.name
        spellings[disease.id] = [name for name in (disease.name, *disease.synonyms) if _is_clear(name)]
        by_key |= {
            key: disease.name for name in spellings[disease.id] if not is_acronym(name) for key in list_keys(name)
        }
    return _RareNames(NameFinder(spellings, acronyms=True), names, by_key)


def _is_clear(name: str) -> bool:
    """Return whether `name` means its disease wherever it stands."""
    capitals = sum(map(str.isupper, name))
    in_capitals = capitals > sum(map(str.islower, name))
    return name.casefold() not in _OTHER_MEANINGS and not (in_capitals and capitals < _FEWEST_CAPITALS)


def _read_column(column: str, row: Mapping[str, Any]) -> bool:
    if not has_column(row, column):
        found = ", ".join(map(str, list(row)[:12]))
        raise InputError(f"rare = {column!r}: the item has no such column; its keys are {found}")
    value = get_column(row, column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    known = value if isinstance(value, bool) else _WORDS.get(str(value).strip().casefold())
    if known is None:
        raise InputError(f"{column} = {value!r} is neither true nor false, so it does not say whether this is rare")
    return known
