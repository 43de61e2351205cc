"""Facts about a disease, extracted from passages by rules: findings, genes, inheritance, onset.

Three kinds of text are understood: the passages that `knowledge.hpo_passages` writes from HPO, the symptom tables in
GARD answers ("Depressed nasal bridge 90% ..."), and free prose ("characterized by ...").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_HPO_FEATURES = re.compile(r"\b(?:frequent|occasional|rare|reported) features are ([^.]+)\.", re.IGNORECASE)
_HPO_FINDING = re.compile(r"[:;] ([^:;]+) \((?:very frequent|frequent|occasional|rare|reported)\)(?=[;.])")
_HPO_ONSET = re.compile(r"\bOnset: ([^.]+)\.")
_GARD_TABLE = re.compile(r"\(when available\)\s+(.*?)(?=The Human Phenotype Ontology \(HPO\)|\.\.\.$|$)")
_GARD_CELL_END = re.compile(r"\s+(?:-|\d+(?:\.\d+)?%|\d+/\d+|\d+ of \d+)(?:\s+|$)")
_PROSE_LIST = re.compile(
    r"(?:characteri[sz]ed by|(?:signs|symptoms|features|findings)[^.:]{0,40}? include)\s+([^.]+)\.", re.IGNORECASE
)
_PROSE_ITEM_END = re.compile(r"\s*[,;]\s*(?:and/or\s+|and\s+|or\s+|as well as\s+)?")
_NOT_A_FINDING = re.compile(
    r"(?:which|that|who|with|but|other|this|these|it|they|the severity|as|more|most|usually|occur\w*|especially|"
    r"including|such|can|may|is|are|in|a variety|many|some|several)\b|.*\b(?:inheritance|onset|mutations?|genes?)\b",
    re.IGNORECASE,
)
_GENE_LIST = re.compile(r"((?:[A-Z][A-Z0-9-]{1,11}(?:,? (?:and|or) |, |\s))+)genes?\b")
_HPO_GENES = re.compile(r"\bAssociated genes: ([^.]+)\.")
_SYMBOL = re.compile(r"\b[A-Z][A-Z0-9-]{1,11}\b")
_NOT_A_GENE = {"DNA", "RNA", "HPO", "GTR", "GARD"}
_MODES = re.compile(
    r"\b(autosomal (?:dominant|recessive)|X-linked (?:dominant|recessive)|X-linked|mitochondrial(?= inherit))", re.I
)
_MAX_WORDS = 9


@dataclass(frozen=True)
class Facts:
    """The facts that passages state about one disease.

    Attributes:
        modes: modes of inheritance.
        text: all passages, to check what they do not state.

    Example: Facts(("Dark urine",), ("HGD",), ("Autosomal recessive",), "adult", "Alkaptonuria is ...")
    """

    findings: tuple[str, ...]
    genes: tuple[str, ...]
    modes: tuple[str, ...]
    onset: str
    text: str


def read_facts(contents: Iterable[str]) -> Facts:
    """Collect the facts of passages that are all about the same disease, in their order."""
    contents = list(contents)
    text = " ".join(contents)
    onset = _HPO_ONSET.search(text)
    return Facts(
        findings=_unique(finding for content in contents for finding in _find_findings(content)),
        genes=_unique(gene for content in contents for gene in _find_genes(content)),
        modes=_drop_general_mode(_unique(_spell_mode(mode) for mode in _MODES.findall(text))),
        onset=onset.group(1) if onset else "",
        text=text,
    )


def _find_findings(content: str) -> Iterator[str]:
    for group in _HPO_FEATURES.findall(content):
        yield from group.split("; ")
    yield from _HPO_FINDING.findall(content)
    for table in _GARD_TABLE.findall(content):
        cells = _GARD_CELL_END.split(table)[:-1]  # after the last mark there is nothing, or a truncated cell
        yield from filter(_is_finding, map(_lower_first, cells))
    for group in _PROSE_LIST.findall(re.sub(r"\s*\([^)]*\)", "", content)):
        yield from filter(_is_finding, _PROSE_ITEM_END.split(group))


def _is_finding(text: str) -> bool:
    return 1 <= len(text.split()) <= _MAX_WORDS and len(text) > 3 and not _NOT_A_FINDING.match(text)


def _find_genes(content: str) -> Iterator[str]:
    for group in _HPO_GENES.findall(content) + _GENE_LIST.findall(content):
        yield from (symbol for symbol in _SYMBOL.findall(group) if symbol not in _NOT_A_GENE)


def _spell_mode(mode: str) -> str:
    return mode[:1].upper() + mode[1:].lower()


def _drop_general_mode(modes: tuple[str, ...]) -> tuple[str, ...]:
    """Drop a bare 'X-linked' if the recessive or dominant form is stated too."""
    if any(mode.startswith("X-linked ") for mode in modes):
        return tuple(mode for mode in modes if mode != "X-linked")
    return modes


def _lower_first(text: str) -> str:
    text = text.strip()
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple({item.casefold(): item for item in items}.values())
