"""Answer extraction and grading, used by the vote, the training reward and the evaluation alike.

Extraction tries the forms in which models state an answer one after the other (`_FORMS`, strongest first). Within
a form the last match wins, because a model that corrects itself means its last answer. Only the letters of the
question's options count. Where the text does not name exactly one option, the answer is None; it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# One letter, possibly wrapped: (B), [B], **B**, \text{B}, "B". A lower-case letter must be followed by
# punctuation or the end of the text: the article in "the answer is a drug" is not option A.
# A letter joined to another one ("A and B", "A/B") names two options and does not match.
_OPEN = r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[\s(\[{*_\"'`$]*"
_ALONE = r"(?![)\]}*_\"'`$]*\s*(?:/|,|\band\b|\bor\b)\s*[(\[{*_\"'`$]*[A-J](?![A-Za-z0-9]))"
_LETTER = _OPEN + r"([A-J](?![A-Za-z0-9])|[a-j](?=\s*(?:[)\]}*_.,:;\"'`$]|\Z)))" + _ALONE
_FORMS = (
    ("boxed", re.compile(r"\\boxed\s*\{" + _LETTER)),
    (
        "statement",
        re.compile(
            r"(?i:\b(?:answer|choice|option)(?:\s+(?:option|choice|letter))?\s*(?:\bis\b|:|=)+"
            r"\s*(?:option\b|choice\b|letter\b)?\s*:?)" + _LETTER
        ),
    ),
    ("bracketed", re.compile(r"[(\[]\s*([A-Ja-j])\s*[)\]]")),
    ("bold", re.compile(r"\*\*\s*([A-Ja-j])\s*(?:[.:]\s*[^*]*)?\*\*")),
    ("bare", re.compile(r"^\s*([A-Ja-j])\s*(?:[.):]|$)", re.MULTILINE)),
)
# Whitespace is collapsed before matching: several \s* in a form would take cubic time on a long run of whitespace.
_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Extraction:
    """An extracted answer.

    Example: Extraction(letter="B", method="boxed"); Extraction(None, None) if the text names no single option.

    Attributes:
        letter: the option's letter.
        method: the form in which it was found: boxed, statement, bracketed, bold, bare or option_text.
    """

    letter: str | None
    method: str | None


def extract_answer(text: str, options: Mapping[str, str]) -> Extraction:
    """Find the option that a reply chooses.

    Args:
        text: the reply of a model.
        options: letter -> option text of the question; other letters are ignored.

    Example: extract_answer("The answer is (B).", {"A": "iron", "B": "zinc"}) == Extraction("B", "statement")
    """
    text = _WHITESPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", text)
    for method, pattern in _FORMS:
        letters = [match.group(1).upper() for match in pattern.finditer(text)]
        letters = [letter for letter in letters if letter in options]
        if letters and not _is_listing(method, letters, options):
            return Extraction(letters[-1], method)
    return _extract_option_text(text, options)


def _is_listing(method: str, letters: list[str], options: Mapping[str, str]) -> bool:
    """Whether the reply repeats the list of options instead of choosing one."""
    named = set(letters)
    return (method == "bare" and len(named) > 1) or (method == "bracketed" and named == set(options))


def _extract_option_text(text: str, options: Mapping[str, str]) -> Extraction:
    """Find the option whose text occurs in the reply, if exactly one does.

    Longer option texts are searched first and removed: in a reply with 'Aplastic anemia', the option 'Anemia' counts
    only if it also occurs elsewhere.
    """
    remaining = text.casefold()
    letters: dict[str, list[str]] = {}
    for letter, option in options.items():
        letters.setdefault(r"\s".join(map(re.escape, option.casefold().split())), []).append(letter)
    named = []
    for words in sorted(letters, key=len, reverse=True):
        pattern = re.compile(r"(?<!\w)" + words + r"(?!\w)")
        if pattern.search(remaining):
            named += letters[words]
            remaining = pattern.sub(" ", remaining)
    return Extraction(named[0], "option_text") if len(named) == 1 else Extraction(None, None)


def grade(text: str, options: Mapping[str, str], label: str) -> float:
    """Return the exact-match reward (paper section 3): 1.0 if the extracted letter equals `label`, else 0.0."""
    return float(extract_answer(text, options).letter == label)
