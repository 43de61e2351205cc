"""Whether a reply tells the answer of its own question: in words, by a mark on an option, or outside the question.

A question whose answer was told is refused: the prompt asks for none, and the label comes from a vote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = "\u2705\u2713\u2714\u2611\u2611"
# Lower case, and searched only if the text contains a hint: most texts do not, and are read ten times faster.
_TOLD = re.compile(
    r"\b(?:correct|right|best|key|final)\s{1,3}(?:answer|option|choice)\s{0,3}(?:is\b|:|=)|"
    r"\banswer(?:\s{1,3}key)?\s{0,3}[*_]{0,2}(?:is\s{1,3}(?:option\s{1,3})?[(\[*\"']{0,3}[a-j]\b|[:=])|"
    r"[(\[]\s?correct(?:\s{1,3}(?:answer|option|choice))?\s?[)\]]|[(\[]\s?right\s{1,3}(?:answer|option|choice)\s?[)\]]|"
    r"\b(?:explanation|rationale)s?\s{0,3}[*_]{0,2}:|(?:<-+|\u2190|=>|\u21d0)\s{0,3}(?:the\s)?(?:correct|right|answer)|"
    rf"\[x\]|[{_SIGNS}]"
)
# Only outside the question: in a stem, these words are part of a story.
_TOLD_OUTSIDE = re.compile(
    r"\b(?:answers?|ans|correct(?:\s{1,3}(?:one|letter))?|key|solution)\s{0,3}[*_]{0,2}\s{0,3}(?:is\b|[:=]|[-\u2013\u2014]\s)|"
    r"^\W*(?:option\s{1,3})?[a-j]\W{0,3}\s(?:is\s(?:the\s)?(?:correct|right|best|answer)|because\b)|"
    r"\b(?:option|choice)\s{1,3}[(*]{0,2}[a-j]\b[)*]{0,2}\s{1,3}is\b|^\W*(?:option\s{1,3})?[a-j]\W*$",
    re.MULTILINE,
)
_HINTS = ("answer", "option", "choice", "correct", "right", "explanation", "rationale", "[x]", *_SIGNS)
_STARRED = re.compile(
    r"\*+\s*(?=[^\s*\d/])(?!.*\*\S).*|.*[^\W\d][.)]?\s*\*+|.*\s\*+|(?:\*\*|__).*(?:\*\*|__)", re.DOTALL
)
_SIDE = re.compile(r"[(\[]\s?right\s?[)\]]\W*$", re.IGNORECASE)
_LEFT = re.compile(r"\bleft\b", re.IGNORECASE)


def find_leak(stem: str, options: Sequence[str], rest: str) -> str | None:
    """Return how a reply tells the answer, or None. `rest`: its text outside the question."""
    inside = "\n|\n".join([stem, *options]).lower()
    if any(hint in inside for hint in _HINTS) and (told := _TOLD.search(inside)):
        return f"the reply says {told.group()!r}"
    outside = rest.lower()
    if told := _TOLD.search(outside) or _TOLD_OUTSIDE.search(outside):
        return f"the reply says {told.group().strip()!r}"
    starred = [option for option in options if _STARRED.fullmatch(option)]
    if starred and len(starred) < len(options):
        return f"only some options have a mark: {starred[0]!r}"
    sides = [option for option in options if _SIDE.search(option)]
    if len(sides) == 1 and not _LEFT.search(inside):  # with a left side, "(right)" is the other side
        return f"an option is marked: {sides[0]!r}"
    return None
