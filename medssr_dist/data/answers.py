"""The one prompt form, extractor and grader: vote, reward and evaluation all use it.

Extraction tries, in this order, the forms in which models state an answer; within a form the
last match wins (a model that corrects itself means its last word). Only letters the question
offers count, and where nothing names exactly one option the answer is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medssr_dist.data.records import Question

INSTRUCTION = "Choose the best option and reply with: The answer is (letter)."

# One letter, possibly wrapped: (B), [B], **B**, \text{B}, "B". A lower-case letter must be closed by
# punctuation or the end of the text, so that the article in "the answer is a drug" is not option A.
# A letter joined to another one ("A and B", "A/B") names two options, so it is none.
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
# Runs of whitespace are collapsed first: adjacent \s* in the forms would take cubic time over a long run.
_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Extraction:
    """The letter found (None if none) and the form it was found in (None if none)."""

    letter: str | None
    method: str | None


def format_question(question: Question) -> str:
    """The user message for a question: stem, lettered options, instruction on the answer's form."""
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return f"{question.stem}\n{options}\n\n{INSTRUCTION}"


def chat_prompt(tokenizer, question: Question) -> str:
    """`format_question` as the model's chat template renders it, ready for generation.

    `tokenizer` is a Hugging Face tokenizer; one without a chat template gets the plain text.
    """
    content = format_question(question)
    if not tokenizer.chat_template:
        return content + "\n"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def extract_answer(text: str, options: Mapping[str, str]) -> Extraction:
    """Find the option letter that `text` answers with.

    Args:
        text: a model's reply.
        options: letter -> option text of the question; other letters are ignored.
    """
    text = _WHITESPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", text)
    for method, pattern in _FORMS:
        letters = [match.group(1).upper() for match in pattern.finditer(text)]
        letters = [letter for letter in letters if letter in options]
        if letters and not _is_listing(method, letters, options):
            return Extraction(letters[-1], method)
    return _extract_option_text(text, options)


def _is_listing(method: str, letters: list[str], options: Mapping[str, str]) -> bool:
    """Whether the letters are an echo of the options rather than an answer."""
    named = set(letters)
    return (method == "bare" and len(named) > 1) or (method == "bracketed" and named == set(options))


def _extract_option_text(text: str, options: Mapping[str, str]) -> Extraction:
    """The option whose text stands in the reply, when exactly one does.

    An option text that is part of a longer one that also stands there ('Anemia' in 'Aplastic
    anemia') counts only where it stands on its own.
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
    """Exact-match reward (paper section 3): 1.0 if the extracted letter equals `label`, else 0.0."""
    return float(extract_answer(text, options).letter == label)
