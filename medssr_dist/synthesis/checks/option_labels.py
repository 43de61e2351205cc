"""Labels of options: "A.", "(A)", "A:", "Option A:", "A - ", "a)", "1.", "ii)". Options are shuffled, so they go.

A label is one only where all options carry the labels of one series in order: "C. difficile" and "E. coli" begin with
the initials of their genus, and stay whole. Where it is unclear which of the two it is, the question is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from medssr_dist.data.records import LETTERS
from medssr_dist.synthesis.checks.reply_parts import RejectedReply

_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_SERIES = (tuple(LETTERS.lower()), tuple(str(number) for number in range(1, 11)), _ROMAN)
_BULLET = re.compile(r"[-*•‣·+](?=\s)\s*|\[ \]\s*")
_LABEL = re.compile(
    r"""
    (?P<bold>\*\*|__)? [(\[（【{]? [ ]?
    (?:(?i:option|choice|answer)[ ]? (?P<named>))?
    (?P<name> [a-jA-Jａ-ｊＡ-Ｊ] | 10 | [1-9] | [iI]{1,3} | [iI]?[vV] | [vV][iI]{1,3} | [iI]?[xX] ) [ ]?
    (?: \*\* | __ )?
    (?P<sign> [.:]?[)\]）】}][.:]? | [.．:：、] | [ ]?[-–—](?=[ ]) | (?=[ ]) | $ )
    (?: \*\* | __ )? [ ]*
    """,
    re.VERBOSE,
)
_DASHES = ("-", "–", "—")
_NUMBER_SIGNS = (*_DASHES, ".", ":")
_EPITHET = re.compile(r"[a-z]+(?:us|is|ae|um|i|a|ans|ens|es|or)(?: (?:group|species|spp?\.?|complex|infection))?")


class OptionLabel(NamedTuple):
    """A label at the start of a text, and the text behind it.

    `series` numbers the kinds of labels; `is_weak`: a letter and a space alone, which may be a word of the option.

    Example: OptionLabel(series=0, place=1, text="Lupus", is_weak=False) for "(B) Lupus"
    """

    series: int
    place: int
    text: str
    is_weak: bool


def read_labels(text: str) -> tuple[OptionLabel, ...]:
    """Return the labels that `text` may begin with: none, one, or for "I." two ("I" is a letter and a number)."""
    bullet = _BULLET.match(text)
    label = _LABEL.match(text, bullet.end() if bullet else 0)
    if label is None:
        return ()
    name, sign, rest = _to_ascii(label["name"]).lower(), label["sign"], text[label.end() :]
    if label["bold"] and rest.endswith(label["bold"]) and rest.count(label["bold"]) == 1:
        rest = rest[: -len(label["bold"])].rstrip()
    is_named, is_weak = label["named"] is not None, not sign and bool(rest)
    is_number = sign.strip() in _NUMBER_SIGNS and rest[:1].isdigit()
    is_number = is_number and (sign.strip() in _DASHES or not text[label.end() - 1].isspace())
    if name.isdigit() and ((is_weak and not is_named) or is_number):
        return ()  # "1 hour", "2 - 4 weeks", "1.5 mg", "1:10"
    return tuple(
        OptionLabel(number, series.index(name), rest, is_weak and not is_named)
        for number, series in enumerate(_SERIES)
        if name in series
    )


def strip_labels(options: Sequence[str]) -> tuple[str, ...]:
    """Return `options` without their labels; unchanged where they have none.

    Raises:
        RejectedReply: an option is a label alone, or it is unclear whether the options have labels.
    """
    labels = [read_labels(option) for option in options]
    if not any(labels):
        return tuple(options)
    for number in range(len(_SERIES)):
        running = [
            next((label for label in found if label[:2] == (number, place)), None) for place, found in enumerate(labels)
        ]
        if all(running) and len(running) > 1:
            return _take_off([label for label in running if label], options)
    if sum(any(map(_is_clear, found)) and found[0].place < len(options) for found in labels) > 1:
        raise RejectedReply("unclear_labels", f"only some options have labels, or in another order: {list(options)}")
    return tuple(options)


def _is_clear(label: OptionLabel) -> bool:
    """Whether a label is none of the initials of an organism, which a small letter follows."""
    return not label.is_weak and (label.text[:1].isupper() or label.text[:1].isdigit())


def _take_off(labels: list[OptionLabel], options: Sequence[str]) -> tuple[str, ...]:
    texts = tuple(label.text for label in labels)
    if not any(texts):
        if labels[0].series == 0:
            raise RejectedReply("bare_letters", f"the options are letters alone: {list(options)}")
        return tuple(options)  # the numbers are the answers
    if any(label.is_weak for label in labels):
        if len(set(texts)) < len(texts) or len(texts) < 3 or not all(texts):
            return tuple(options)  # "A antigen", "B antigen"
        if not all(text[0].isupper() or text[0].isdigit() for text in texts):
            raise RejectedReply("unclear_labels", f"labels, or words of the options: {list(options)}")
    if labels[0].series == 0 and len(texts) < 4 and all(map(_EPITHET.fullmatch, texts)):
        raise RejectedReply("unclear_labels", f"labels, or initials of organisms: {list(options)}")
    return texts


def _to_ascii(name: str) -> str:
    return "".join(chr(ord(character) - 0xFEE0) if ord(character) > 0xFF00 else character for character in name)
