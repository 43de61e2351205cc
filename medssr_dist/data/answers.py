"""The reader of answers, used by the vote, the training reward and the evaluation alike.

A reply is read in stages:

1. Thoughts are cut off (`data.thoughts`). Where they are not closed, the reply has no answer.
2. What follows an invented question is cut off: a base model goes on to the next item of a list.
3. Explicit statements (`data.statements`): tag, box, JSON key, "the answer is B" in many languages. The last wins.
4. A reply that was cut at the token limit ends here. So does JSON without an answer: its thoughts are no answer.
5. A choice alone in the first or the last line, then what the closing sentence asserts (`data.closing`).

A reply that ends without a final statement has no answer. Only the letters of the question's options count, and where
the text does not name exactly one option, the answer is None: a wrong letter is worse than none. So a letter that
contradicts the option's text behind it ("A. Gout" where gout is B) is none either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medssr_dist.data.choices import Choices, prepare_choices
from medssr_dist.data.closing import read_closing, read_opening
from medssr_dist.data.plain_text import lower, make_plain
from medssr_dist.data.statements import Statement, StatementFinder, is_taken_back
from medssr_dist.data.thoughts import cut_thoughts

# The next item of a list of questions, or the next turn of a dialogue, that a model invents behind its answer.
_INVENTED = re.compile(
    r"\n[#> ]*(?:(?:next )?question(?: ?\d+)?(?: ?[.:)](?= |\n|$)|\n)|(?:problem|exercise) \d+|q ?\d+ ?[.)]|(?:q"
    r"|user|human|instruction)(?: ?\d+)?:)"
    r"|<\|(?:im_start|im_end|eot_id|user|start_header_id|endoftext)\|>|\[/?inst\]|<start_of_turn>|<end_of_turn>|</s>"
)
_JSON_BEGIN = re.compile(r"\s*(?:```\w*\s*)?\{\s*[\"']\w")


@dataclass(frozen=True)
class Extraction:
    """An extracted answer.

    Example: Extraction(letter="B", method="boxed"); Extraction(None, None) if the text states no single option.

    Attributes:
        letter: the option's letter.
        method: the form in which it was found: tag, boxed, json, statement ("the answer is B"), bare (a choice alone in
            its line), bracketed or closing (a letter in the closing sentence), option_text.
        is_open: whether the reply ends inside thoughts that were never closed. It then has no answer.
    """

    letter: str | None
    method: str | None
    is_open: bool = False


def extract_answer(text: str, options: Mapping[str, str], truncated: bool = False) -> Extraction:
    """Find the option that a reply chooses.

    Args:
        text: the reply of a model.
        options: letter -> option text of the question; other letters are ignored.
        truncated: whether the reply was cut at the token limit. It then holds an answer only in an explicit form, or
            if it is nothing but a choice.

    Example: extract_answer("The answer is (B).", {"A": "iron", "B": "zinc"}) == Extraction("B", "statement")
    """
    cut = cut_thoughts(text)
    if cut.is_open:
        return Extraction(None, None, is_open=True)
    is_json = _JSON_BEGIN.match(cut.text) is not None
    plain = make_plain(cut.text.replace("\\n", "\n") if is_json else cut.text)
    low = lower(plain)
    invented = _INVENTED.search(low, 1)
    if invented:
        plain, low = plain[: invented.start()], low[: invented.start()]
    choices = prepare_choices(options)
    statements = list(StatementFinder(plain, low, choices).find())
    if is_json:
        statements = _keep_json(plain, statements)
    if any(not statement.is_denial for statement in statements):
        return _choose_last(low, statements)
    if is_json or truncated:
        return _read_bare(plain, choices)
    return _read_weak(plain, choices, {statement.letter for statement in statements})


def _choose_last(low: str, statements: list[Statement]) -> Extraction:
    """Return the last statement, unless it is denied or taken back behind it."""
    last: Statement | None = None
    for statement in statements:
        if not statement.is_denial:
            last = statement
        elif last and last.letter == statement.letter:
            last = None
    if last is None or last.letter is None or is_taken_back(low, last):
        return Extraction(None, None)
    return Extraction(last.letter, last.method)


def _keep_json(plain: str, statements: list[Statement]) -> list[Statement]:
    """Keep the statements of a JSON reply that are its answer, not its thoughts.

    Where no key holds the answer, what the text says counts, if the object is complete.
    """
    keyed = [statement for statement in statements if statement.method == "json"]
    if keyed:
        return keyed
    return statements if plain.endswith(("}", "]")) else []


def _read_bare(plain: str, choices: Choices) -> Extraction:
    """Read a reply that is nothing but a choice."""
    reading = choices.read_whole(plain, is_strict=True)
    if reading is None or reading.letter is None:
        return Extraction(None, None)
    form = "bracketed" if plain.startswith(("(", "[")) else "bare"
    return Extraction(reading.letter, "option_text" if reading.is_text else form)


def _read_weak(plain: str, choices: Choices, denied: set[str | None]) -> Extraction:
    """Read a reply without an explicit statement: as a choice alone, by its closing, then by its first line."""
    found = _read_bare(plain, choices)
    if found.letter is None and (closing := read_closing(plain, choices)):
        found = Extraction(closing[0].letter, closing[1])
    if found.letter is None and (opening := read_opening(plain, choices)):
        found = Extraction(opening.letter, "option_text" if opening.is_text else "bare")
    return Extraction(None, None) if found.letter in denied else found


def grade(text: str, options: Mapping[str, str], label: str, truncated: bool = False) -> float:
    """Return the exact-match reward (paper section 3): 1.0 if the extracted letter equals `label`, else 0.0."""
    return float(extract_answer(text, options, truncated).letter == label)
