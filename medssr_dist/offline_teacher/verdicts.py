"""The offline teacher as a judge: scores from what rules can check in a question, not from medical knowledge.

reasoning      one point each for a patient, for three findings or more, for a case and a question in separate
               sentences, and for a stem that names no title of the passages
answerability  with passages: 5 if they name exactly one option, 3 if they name several, 1 if they name none;
               without: 3 for a stem with one question and distinct options, else 1
plausibility   two points each for options of one kind (genes, modes of inheritance, other words) and of similar length
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from statistics import median
from typing import Any

from medssr_dist.offline_teacher.reading import read_option, split_sentences
from medssr_dist.synthesis.judge import QUESTION_HEADING
from medssr_dist.synthesis.prompts import PASSAGE_HEADING

_QUESTION = re.compile(rf"^{re.escape(QUESTION_HEADING)}\n(.+(?:\n.+)*)", re.MULTILINE)
_PASSAGE_HEADING = re.escape(PASSAGE_HEADING).replace(r"\{number\}", "[0-9]+")
_PASSAGE = re.compile(rf"^{_PASSAGE_HEADING}\n(.+)", re.MULTILINE)
_PATIENT = re.compile(
    r"\b(?:patient|man|woman|boy|girl|infant|newborn|child|family|(?:year|month|week|day)s?[- ]old)\b", re.I
)
_SEPARATOR = re.compile(r",|;|\band\b|\bwith\b", re.I)
_GENE = re.compile(r"[A-Z][A-Z0-9-]{1,11}")
_MODE = re.compile(r"autosomal|x-linked|y-linked|mitochondrial", re.I)
_SIMILAR_LENGTH = 3.0  # times as long or as short as the median
_NAME_WORDS = 4  # of a passage, where it begins with the name of its disease


@dataclass(frozen=True)
class JudgedQuestion:
    """A question as the judge's prompt shows it. Example: JudgedQuestion("Which?", ("x", "y"), ("Gout is ...",))"""

    stem: str
    options: tuple[str, ...]
    passages: tuple[str, ...]


def read_judged_question(messages: list[dict[str, Any]]) -> JudgedQuestion | None:
    """Return the question of a judge's prompt, or None if the messages are another conversation."""
    content = str(messages[-1].get("content", ""))
    found = _QUESTION.search(content)
    if found is None:
        return None
    stem, *rest = found[1].split("\n")
    options = tuple(option for line in rest if (option := read_option(line)))
    return JudgedQuestion(stem, options, tuple(_PASSAGE.findall(content)))


def compose_verdict(question: JudgedQuestion) -> str:
    """Return the verdict as the JSON that the judge's prompt asks for."""
    scores = {
        "reasoning": _score_reasoning(question),
        "answerability": _score_answerability(question),
        "plausibility": _score_plausibility(question.options),
    }
    return json.dumps(scores)


def spoil_verdict(verdict: str, flaw: str) -> str:
    """Return a verdict that cannot be read, in one of several ways."""
    if flaw == "prose":
        return "It is a fine question."
    scores = json.loads(verdict)
    if flaw == "answer_key":
        del scores["plausibility"]
    else:
        scores["reasoning"] = 9
    return json.dumps(scores)


def _score_reasoning(question: JudgedQuestion) -> int:
    *case, _ = split_sentences(question.stem)
    findings = len(_SEPARATOR.findall(question.stem)) + 1
    names = [" ".join(passage.split()[:_NAME_WORDS]).casefold() for passage in question.passages]
    gives_name = any(_shares_start(question.stem.casefold(), name) for name in names)
    return 1 + bool(_PATIENT.search(question.stem)) + (findings >= 3) + bool(case) + (not gives_name)


def _shares_start(stem: str, name: str) -> bool:
    """Return whether the stem holds the first two words of a passage, where the name of its disease stands."""
    return " ".join(name.split()[:2]) in stem


def _score_answerability(question: JudgedQuestion) -> int:
    if not question.passages:
        distinct = len({option.casefold() for option in question.options}) == len(question.options) >= 2
        return 3 if distinct and question.stem.count("?") == 1 else 1
    text = " ".join(question.passages).casefold()
    named = sum(option.casefold() in text for option in question.options)
    return {0: 1, 1: 5}.get(named, 3)


def _score_plausibility(options: tuple[str, ...]) -> int:
    kinds = {"gene" if _GENE.fullmatch(each) else "mode" if _MODE.match(each) else "words" for each in options}
    middle = median(map(len, options)) if options else 0
    similar = all(middle <= _SIMILAR_LENGTH * len(each) and len(each) <= _SIMILAR_LENGTH * middle for each in options)
    return 1 + 2 * (len(kinds) == 1) + 2 * (similar and len(options) >= 2)
