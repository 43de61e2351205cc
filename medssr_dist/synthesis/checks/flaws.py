"""Item-writing flaws: features that let an examinee answer correctly, or fail, for a reason other than knowledge.

They follow the guide of the US National Board of Medical Examiners ("Constructing Written Test Questions for the
Basic and Clinical Sciences"). No answer is known at this point, so the checks read the wording alone. Each check is
named as in `synthesis.checks`. It takes a draft and the provenance of its request, and returns None, or a rejection
that quotes the words that show the flaw.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from medssr_dist.data.option_references import find_reference
from medssr_dist.data.records import Provenance, Question
from medssr_dist.knowledge.name_finder import find_name, is_same_name
from medssr_dist.knowledge.names import derive_family
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection
from medssr_dist.synthesis.checks.wording import fold, join_text

# Lower case, like the texts that are searched: a search that ignores case is five times slower.
_PICTURE = (
    r"(?:figure|fig\.|image|picture|photo(?:graph|micrograph)?|illustration|diagram|graph|chart|exhibit|"
    r"(?:radio|angio|echocardio|electrocardio|cardioto)gra(?:ph|m)|ecg|ekg|x-ray|ct scan|mri|ultrasound|tracing|"
    r"pedigree|smear|biopsy|specimen|karyotype|audiogram|spirogram|scan)s?"
)
_SHEET = r"(?:figure|image|exhibit|picture|photograph|photomicrograph|diagram|graph)"
_SHOWN = r"(?:shown|seen|depicted|pictured|displayed|given|provided|presented|marked|labell?ed|listed|summari[sz]ed)"
_MISSING_FIGURE = re.compile(
    rf"\b{_PICTURE}(?: (?!(?:report|results?|findings?)\b)[^\s.?!:;]+){{0,8}}? {_SHOWN} (?:below|above|here)\b|"
    rf"\b{_PICTURE}(?: [^\s.?!:;]+){{0,8}}? (?:is|are) (?:shown|provided|depicted|pictured|displayed|attached)"
    r"(?=[.;,?]|$)|"
    rf"\b{_PICTURE} (?:below|above)\b|"
    rf"\b(?:see|refer to|look at) (?:the )?(?:accompanying |attached |following )?{_SHEET}s?\b|"
    rf"\b{_SHOWN} (?:below )?(?:in|on|by) (?:the )?(?:(?:accompanying|attached|following) )?{_SHEET}\b|"
    rf"\b(?:accompanying|attached) {_PICTURE}|\bthe following {_SHEET}\b|\bin the {_SHEET}\b|"
    r"\b(?:figure|fig\.|exhibit) \d|\b(?:arrow|arrowhead)s? (?:points?|indicates?|in the)\b"
)
# What a text can contain: a table, or results that "are shown below". It is missing if no values follow.
_MISSING_VALUES = re.compile(
    r"\b(?:see|refer to|look at|in|on|by|from) (?:the )?(?:accompanying |attached |following )?table\b|"
    r"\b(?:the following|accompanying|attached) table\b|\btable (?:below|above|\d)|"
    r"\b(?:shown|depicted|pictured) below(?= *[.?])"
)
_SENTENCE_END = re.compile(r"(?<=[.?!]) +|\n")
_SEEN_AHEAD = 1000  # characters behind the reference in which values are searched for
_ROW_WORDS = 15  # a longer line is no row of a table
_VALUE = re.compile(r"\d|\b(?:positive|negative|normal|present|absent|elevated|decreased|increased|reactive)\b")
# Every match of both contains one of these; most texts contain none and need no search.
_HINTS = (
    " below",
    " above",
    " here",
    "fig",
    "image",
    "table",
    "exhibit",
    "picture",
    "photo",
    "diagram",
    "graph",
    "arrow",
    "accompanying",
    "attached",
    " is shown",
    " are shown",
    " is provided",
    " are provided",
    " displayed",
    " depicted",
)
_NEGATIVE = re.compile(
    r"\b(?:EXCEPT|NOT|LEAST|FALSE|INCORRECT)\b|"
    r"(?i:\bexcept(?: for)?(?: one)?(?: of the following)?\s*[:?.]*\s*$|"
    r"\b(?:which|what|who)\b(?:(?!\b(?:why|because|that|who|when|if|explains?|since|despite)\b)[^?.;])*?"
    r"\b(?:is|are|was|were|does|do|would|should|can|could|will|has|have|must|may) (?:not|least)\b|"
    r"\b(?:which|what)\b[^?.;]*\b(?:least (?:likely|appropriate|consistent|accurate|useful|common|associated)|"
    r"(?:is|are) (?:false|incorrect|untrue|inaccurate))\b)"
)
_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z\"'(])|\n")
_LEAD_IN = 300  # characters: the last sentence of a stem is not longer
_SHORT_OPTION = 30  # characters: a longest option shorter than this is no clue
_TYPE = re.compile(r"[\s,]+(?:(?:type|variant|form) )?(?:\d{1,3}[a-z]?|[ivx]{1,5}[a-d]?)$", re.IGNORECASE)
_BRACKETS = re.compile(r"[()\[\]]")
_KEY_WORD = 6  # letters: shorter words are too common to be a clue
_COMMON_SHARE = 0.01  # a word is rare if fewer of the seeds have it


def min_words(draft: Draft, provenance: Provenance, least: int) -> Rejection | None:
    """Reject a stem of fewer than `least` words."""
    count = len(draft.stem.split())
    return (
        Rejection("min_words", f"the stem has {count} words, at least {least} are required") if count < least else None
    )


def max_words(draft: Draft, provenance: Provenance, most: int) -> Rejection | None:
    """Reject a stem of more than `most` words."""
    count = len(draft.stem.split())
    return Rejection("max_words", f"the stem has {count} words, at most {most} are required") if count > most else None


def entity_given_away(draft: Draft, provenance: Provenance, synonyms: Sequence[str] = ()) -> Rejection | None:
    """Reject a question whose stem names the entity, if the entity (or a variant of its name) is an option.

    Spellings, possessives, inverted names and `synonyms` are the same name (see `name_finder`). If one option alone is
    of the entity's family, its name without a type counts too: "Gaucher disease" gives "Gaucher disease type 1" away.
    """
    if provenance.entity is None:
        return None
    names = (provenance.entity, *synonyms)
    own = [option for option in draft.options if _is_one_of(option, names)]
    if not own:
        return None
    names += tuple(own)
    if len(own) == 1:
        bases = (_TYPE.sub("", name) for name in names)
        names += tuple(base for base in bases if " " in base)  # not the "Trisomy" of "Trisomy 21"
    inverted = tuple(f"{rest} {first}" for first, _, rest in (name.partition(" ") for name in names) if rest)
    named = find_name(draft.stem, tuple(dict.fromkeys(names + inverted)))
    if named is None:
        return None
    return Rejection("entity_given_away", f"the stem names {named!r}, and {own[0]!r} is an option")


def _is_one_of(option: str, names: Sequence[str]) -> bool:
    """Whether an option is one of these names, another type of the first, or one of them with another in brackets."""
    parts = (option, *filter(None, map(str.strip, _BRACKETS.split(option))))
    return derive_family(option) == derive_family(names[0]) or any(
        is_same_name(part, name) for part in parts for name in names
    )


def missing_figure(draft: Draft, provenance: Provenance) -> Rejection | None:
    """Reject a stem that refers to a figure, an image or a table that it does not contain."""
    stem = draft.stem.lower()
    if not any(hint in stem for hint in _HINTS):
        return None
    line = stem.replace("\n", " ")
    found = _MISSING_FIGURE.search(line)
    found = found or next(
        (
            each
            for each in _MISSING_VALUES.finditer(line)
            if not _has_values(stem[each.end() : each.end() + _SEEN_AHEAD])
        ),
        None,
    )
    return Rejection("missing_figure", f"the stem says {found.group()!r}") if found else None


def _has_values(text: str) -> bool:
    """Whether values follow a reference to a table or results: in the next sentence, or in two rows below it."""
    text = text.replace("|", "\n")
    sentence = _SENTENCE_END.split(text.lstrip(" .:\n-"), maxsplit=1)[0]
    if _VALUE.search(sentence) and not sentence.endswith("?"):
        return True
    rows = [line for line in text.split("\n")[1:] if len(line.split()) <= _ROW_WORDS and not line.endswith("?")]
    return sum(_VALUE.search(row) is not None for row in rows) > 1


def all_or_none(draft: Draft, provenance: Provenance) -> Rejection | None:
    """Reject an option that refers to other options, such as 'all of the above'."""
    found = find_reference(draft.options)
    return Rejection("all_or_none", f"an option is {found!r}") if found else None


def negative_lead_in(draft: Draft, provenance: Provenance) -> Rejection | None:
    """Reject a stem whose last sentence asks for the exception (NOT, EXCEPT)."""
    lead_in = _SENTENCE.split(draft.stem[-_LEAD_IN:])[-1]
    found = _NEGATIVE.search(lead_in)
    return Rejection("negative_lead_in", f"the question asks {lead_in!r}") if found else None


def longest_option(draft: Draft, provenance: Provenance, times: float) -> Rejection | None:
    """Reject an option `times` as long as the next longest: the correct option is often the most detailed one."""
    *_, second, longest = sorted(draft.options, key=len)
    if len(longest) < _SHORT_OPTION or len(longest) < times * len(second):
        return None
    return Rejection("longest_option", f"{longest!r} has {len(longest)} characters, the next longest {len(second)}")


class RepeatedKeyWord:
    """Rejects a question if a rare word of the stem occurs in exactly one option. Rare: in under 1% of the seeds."""

    def __init__(self, seeds: Sequence[Question]):
        found = Counter(word for seed in seeds for word in _key_words(join_text(seed.stem, seed.options.values())))
        self._common = {word for word, count in found.items() if count > max(1, _COMMON_SHARE * len(seeds))}

    def __call__(self, draft: Draft, provenance: Provenance) -> Rejection | None:
        rare = _key_words(draft.stem) - self._common
        holding = Counter(word for option in draft.options for word in _key_words(option) & rare)
        clue = min((word for word, count in holding.items() if count == 1), default=None)
        if clue is None:
            return None
        return Rejection("repeated_key_word", f"{clue.decode()!r} is in the stem and in one option")


def _key_words(text: str) -> set[bytes]:
    return {word for word in fold(text).split() if len(word) >= _KEY_WORD}
