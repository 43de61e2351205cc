"""Whether a reply tells the answer of its own question: in words, by a mark on an option, or outside the question.

A question whose answer was told is refused: the prompt asks for none, and the label comes from a vote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

_SIGNS = "\u2705\u2713\u2714\u2611"
_ENDS = r"(?:is|are|was|will be|would be|should be|[:=]|[-\u2013\u2014](?=\s))"
# What a statement of the answer begins with; the answer itself must follow, as a letter or as the text of an option.
_STATEMENT = re.compile(
    r"(?:<answer>|\b(?:answers?(?:\s(?:key|choice|option|letter))?|ans|correct(?:\s(?:one|letter|option|choice))?|"
    rf"(?:right|best)\s(?:option|choice)|key|solution)\s{{0,3}}[*_]{{0,2}}\s{{0,3}}{_ENDS})[\s*_(\[\"'\u201c]{{0,6}}"
    r"(?:(?:the|option|choice|answer|letter)\s{1,3}[*_(\[\"'\u201c]{0,3})?"
)
_LETTER = re.compile(r"[A-J](?![\w'\u2019-])|[a-j](?=[)\].*]|\s*$)", re.MULTILINE)
_MARK = re.compile(
    r"[(\[]\s?(?:correct|right(?=\s))(?:\s{1,3}(?:answer|option|choice))?\s?[)\]]|\b(?:explanation|rationale)s?\s{0,3}[*_]{0,2}:|"
    rf"(?:<-+|\u2190|=>|\u21d0|[-\u2013\u2014])\s{{0,3}}(?:the\s)?(?:correct|right)(?:\sanswer)?\s{{0,3}}$|\[x\]|[{_SIGNS}]",
    re.MULTILINE,
)
# Outside the question alone: "Option B is correct", "B is the best", or a line that is one letter.
_CHOSEN = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice)\s{1,3}[(*]{0,2}[A-J]\b[^.\n]{0,40}\b(?:correct|right|best|answer)\b|"
    r"^\W{0,5}[A-J]\W{1,3}is\s(?:the\s)?(?:correct|right|best|answer)\b|^\W{0,5}(?:[Oo]ption\s)?[A-J]\W{0,5}$",
    re.MULTILINE,
)
# Every match of _MARK and _STATEMENT contains one of these; most texts contain none and need no search.
_HINTS = (
    "answer",
    "ans:",
    "ans ",
    "correct",
    "right ",
    "best option",
    "best choice",
    "key",
    "solution",
    "[x]",
    *_SIGNS,
)
_HINTS += ("explanation", "rationale")
_LOWER = {ord(letter): ord(letter.lower()) for letter in ascii_uppercase}
_STARRED = re.compile(
    r"\*+\s*(?=[^\s*\d/])(?!.*\*\S).*|.*[^\W\d][.)]?\s*\*+|.*\s\*+|(?:\*\*|__).*(?:\*\*|__)", re.DOTALL
)
_SIDE = re.compile(r"[(\[]\s?right\s?[)\]]\W*$", re.IGNORECASE)
_LEFT = re.compile(r"\bleft\b", re.IGNORECASE)


def find_leak(stem: str, options: Sequence[str], rest: str) -> str | None:
    """Return how a reply tells the answer, or None. `rest`: its text outside the question."""
    inside = "\n|\n".join([stem, *options])
    for text in (inside, rest):
        folded = _lower(text)
        if any(hint in folded for hint in _HINTS):
            told = _MARK.search(folded) or _find_statement(text, folded, options)
            if told:
                return f"the reply says {told.group().strip()!r}"
    if rest and (chosen := _CHOSEN.search(rest)):
        return f"the reply says {chosen.group().strip()!r}"
    starred = [option for option in options if ("*" in option or "__" in option) and _STARRED.fullmatch(option)]
    if starred and len(starred) < len(options):
        return f"only some options have a mark: {starred[0]!r}"
    sides = [option for option in options if _SIDE.search(option)]
    if len(sides) == 1 and not _LEFT.search(inside):  # with a left side, "(right)" is the other side
        return f"an option is marked: {sides[0]!r}"
    return None


def _lower(text: str) -> str:
    """Return `text` in small letters and of the same length: a few letters become two."""
    lower = text.lower()
    return lower if len(lower) == len(text) else text.translate(_LOWER)


def _find_statement(text: str, folded: str, options: Sequence[str]) -> re.Match[str] | None:
    """Return a statement that an option follows: "The answer is B", "Answer: gout". `folded`: text in small letters."""
    texts = tuple(map(_lower, options))
    for statement in _STATEMENT.finditer(folded):
        if _LETTER.match(text, statement.end()) or folded.startswith(texts, statement.end()):
            return statement
    return None
