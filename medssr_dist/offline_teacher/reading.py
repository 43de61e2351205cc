"""Parses a synthesis prompt into its parts, by the headings of `synthesis.prompts`, which every template contains."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from medssr_dist.synthesis.prompts import ENTITY_HEADING, PASSAGE_HEADING, SEED_HEADING

_HEADINGS = "|".join(
    re.escape(heading).replace(r"\{number\}", r"\d+") for heading in (SEED_HEADING, ENTITY_HEADING, PASSAGE_HEADING)
)
_SECTION = re.compile(rf"^({_HEADINGS})\n(.+(?:\n.+)*)", re.MULTILINE)  # up to an empty line
_OPTION = re.compile(r"[A-J]\. (.+)")
_ASKS_DIAGNOSIS = re.compile(
    r"\bdiagnosis\s*\?|(?:which|what)(?: of the following)?(?: \w+)? (?:conditions?|disorders?|diseases?|syndromes?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Seed:
    """A seed question as the prompt shows it, without its answer."""

    stem: str
    options: tuple[str, ...]

    @property
    def asks_diagnosis(self) -> bool:
        """Whether the last sentence asks for a disease; then the options are diseases."""
        return _ASKS_DIAGNOSIS.search(split_sentences(self.stem)[-1]) is not None


@dataclass(frozen=True)
class PromptParts:
    """The parts of a prompt; `passages` are (title, content) pairs."""

    seeds: tuple[Seed, ...]
    entity: str | None
    passages: tuple[tuple[str, str], ...]


def read_prompt(messages: list[dict[str, Any]]) -> PromptParts | None:
    """Return the parts of a synthesis prompt, or None if the messages are another conversation."""
    seeds: list[Seed] = []
    passages: list[tuple[str, str]] = []
    entity = None
    for heading, body in _SECTION.findall(str(messages[-1].get("content", ""))):
        first, *rest = body.split("\n")
        if heading == ENTITY_HEADING:
            entity = first
        elif heading.startswith(PASSAGE_HEADING.split(" ")[0]):
            passages.append((first, " ".join(rest[:1])))
        elif heading.startswith(SEED_HEADING.split("{")[0]):
            seeds.append(Seed(first, tuple(filter(None, map(read_option, rest)))))
    if entity is None and passages:  # a template without the heading; the first passage is the closest to the entity
        entity = passages[0][0]
    return PromptParts(tuple(seeds), entity, tuple(passages)) if len(seeds) == 2 else None


def read_option(line: str) -> str:
    """Return the text of a lettered option; "" if the line is none."""
    match = _OPTION.fullmatch(line)
    return match[1] if match else ""


def split_sentences(text: str) -> list[str]:
    """Split `text` into sentences; the list has at least one item."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z(])", text.strip())
