"""Answers without an explicit statement: a choice alone in a line, and what the closing sentence asserts."""

from __future__ import annotations

import re

from medssr_dist.data.certainty import is_doubted
from medssr_dist.data.choices import Choices, Reading
from medssr_dist.data.plain_text import lower

_LABEL_LINE = re.compile(r"(?:[-+•|#]|\d+[.)])* ?(?:option |choice )?[(\[]?([A-J])[)\].:|]", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?P<letter>\b[A-Z])?[.!?][\"')\]]* (?=[\"'(\[]?[A-Z\d])")
_LIST_BEGIN = re.compile(
    r"\b(?:evaluat|analy[sz]|consider|examin|look|go|review|compar|discuss|assess|weigh|break)\w*\b[^.\n]*"
    r"\b(?:each|options?|statements?|choices|one by one|one at a time|them|answers|possibilities)\b[^.\n]*[.:]?\Z"
    r"|\b(?:options|choices|statements|each (?:option|choice|statement|one))\b[^.\n]{0,60}[:.]\Z"
)
_SHORT_REPLY = 300  # characters of a reply that may begin "Yes, ..." and go on to explain
_SHORT = 40  # characters of a reply that may lack its full stop: "Surely (C)"
_COMPLETE = re.compile(r"[.!)\]\"'}]\Z")
_NOT_ASSERTED = re.compile(
    r"\b(?:not|no|never|neither|nor|unlikely|less|rul(?:e|es|ed|ing) out|exclud\w+|incorrect|wrong|false|however"
    r"|although|though"
    r"|but|except|could|might|may|if|unless|perhaps|maybe|possibl[ey]|rather|instead|whereas|differential"
    r"|consider\w*|without"
    r"|unless|would have|compare\w*|unlike|versus|vs|both|either|cannot|lack\w*|further|next,|let|rarely"
    r"|sometimes)\b|n't|\?"
)
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|consequently|in conclusion|in summary|to summarize|overall|conclusion|finally"
    r"|altogether"
    r"|taken together|in this case|(?:based on|given|considering|among|of) [^,\n]{1,120},|i (?:think|believe)|surely"
    r"|clearly"
    r"|it follows that"
    r"|we conclude(?: that)?|it is|it's|it must be|this is|that is|this must be|the)(?:\b|(?<=,))[,: ]*)*"
)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|conclu\w+|in summary|overall|altogether|taken together"
    r"|most (?:likely|consistent"
    r"|appropriate|suitable|probable|compatible)|best|diagnosis|must be|points? to|suggests?|diagnostic of"
    r"|characteristic of"
    r"|consistent with|answer|correct|typical of|classic)\b"
)
_BRACKETED = re.compile(r"[(\[] ?(?:option |choice |answer |answer choice )?([A-Z]) ?[)\]]")
_COPULA_LETTER = re.compile(
    r"\b(?:is|be|was|are|:|(?:explained|supported|described) by|consistent with|corresponds? to|points to|with|matches"
    r"|fits) (?=(?:option |choice |answer |clearly )?[(\[\"']?[A-Z](?:[.)\]:\"']|$))"
)
_GRADED = re.compile(
    r"\b(?:group|type|vitamin|grade|class|stage|hepatitis|factor|form|phase|subtype|category|level|score|lead)\b"
)
_LETTER_FIRST = re.compile(
    r"(?:answer )?(?:option |choice )?[(\[\"']?(?P<letter>[a-z])[)\]\"']? (?:(?:best )?(?:explains|fits|matches"
    r"|describes)\b|fits best"
    r"|(?:is|seems|looks|remains) (?:the )?(?:only |most |far )?(?:correct|right|best|better|likely|appropriate"
    r"|accurate|suitable)\b)"
)
_NAMES_BEFORE = re.compile(
    r"(?:\b(?:is|are|was|be|(?:consistent|compatible|diagnosed|fits?|associated) with|(?:due|points?|refers?"
    r"|attributed) to"
    r"|(?:diagnosis|characteristic|typical|diagnostic|suggestive|indicative|case|picture) of|suggests?|indicates?"
    r"|diagnosis"
    r"|confirms?|represents?|therefore|thus|hence|so|:)[:,]?)(?: (?:a|an|the|likely|most likely|probably|probable"
    r"|case of"
    r"|diagnosis of|classic|typical|indeed|called|clearly|use of|to|start|give|perform|administer)){0,4} [\"'(]?\Z"
)
_NAMES_AFTER = re.compile(r"[\"')]*(?: \([^()]{0,80}\))?(?: (?:in this (?:case|patient)|here))?[.!\"')]*\Z")
_PREDICATE = re.compile(
    r"[\"')]*(?: \([^()]{0,60}\))? (?:is|are|would be|remains|seems to be) (?:therefore |thus |clearly "
    r"|indeed )?(?:the )?"
    r"(?:single |overall )?(?:most (?:likely|appropriate|suitable|probable|effective|accurate|consistent|important"
    r"|common)|best"
    r"|correct|right|likely|preferred|treatment of choice|drug of choice|first-line|answer|diagnosis|test of choice)\b"
)
_SHORT_WORDS = frozenset({"yes", "no", "maybe", "true", "false", "uncertain"})


def read_opening(text: str, choices: Choices) -> Reading | None:
    """Read the first line as an answer with an explanation behind it: "B. Iron", "(B)", "Yes, ...".

    A first line "A. Iron" may also begin a list of the options, so nothing labelled may follow it.
    """
    if not _COMPLETE.search(text):
        return None
    first, _, rest = text.partition("\n")
    low = lower(first)
    word = re.compile(r"([a-z]+)[,.]").match(low)
    if word and word[1] in _SHORT_WORDS and len(text) <= _SHORT_REPLY and (letter := choices.name(word[1])):
        return Reading(letter, word.end(), is_text=True)
    reading = choices.read_whole(first, is_strict=True) or _read_first_sentence(first, choices)
    if not reading or reading.letter is None or (reading.is_text and rest):
        return None
    labels = {match[1].upper() for line in rest.split("\n") if (match := _LABEL_LINE.match(line))}
    if reading.letter == min(choices.letters) and labels | _denied(rest):
        return None
    is_list = bool(labels) and labels >= {letter for letter in choices.letters if letter > reading.letter} - {
        reading.letter
    }
    return None if is_list and reading.letter == min(choices.letters) else reading


def _read_first_sentence(line: str, choices: Choices) -> Reading | None:
    """Read "B) Iron. The ferritin is low." as B: label and text of one option, then a new sentence."""
    label = re.compile(r"[(\[]?([A-Z])[)\].:]+ ?").match(line)
    if not label or label[1] not in choices.letters:
        return None
    low, own = lower(line), choices.texts[label[1]]
    is_own = own and low.startswith(own, label.end())
    return Reading(label[1], label.end()) if is_own and low[label.end() + len(own) :].startswith((".", "!")) else None


def _denied(rest: str) -> set[str]:
    """Return what speaks against a first line "A. ..." in the sentence behind it; empty if nothing does."""
    sentence = lower(rest[:200])
    return set(_NOT_ASSERTED.findall(sentence)[:1])


def read_closing(text: str, choices: Choices) -> tuple[Reading, str] | None:
    """Read the last line or the last sentence; return the choice and the form it has.

    The sentence must be complete: one without a final full stop is cut, and the rest of it might deny what it says.
    """
    lines = text.rsplit("\n", 2)
    line, before = lines[-1], lines[-2] if len(lines) > 1 else ""
    is_listed = _is_listed(line, before)
    if not is_listed and (reading := choices.read_whole(line.lstrip("-•# "), is_strict=True)):
        return (reading, "option_text" if reading.is_text else "bare") if reading.letter else None
    if is_listed or (_LABEL_LINE.match(line) and "\n" in text):
        return None  # the discussion of one option
    sentence = _find_last_sentence(line, choices)
    is_complete = _COMPLETE.search(sentence) is not None or (sentence == text and len(text) <= _SHORT)
    low = lower(sentence)
    if not is_complete or _NOT_ASSERTED.search(low) or is_doubted(low, 0, len(low)):
        return None
    return _read_sentence(sentence, low, choices, is_alone=sentence == line)


def _is_listed(line: str, before: str) -> bool:
    """Whether a line is one of a list of options: the line before is the option before it, or begins the list."""
    label = re.match(r"[-•#+ ]*(?:[Oo]ption |[Cc]hoice )?[(\[]?([A-J])\b", line)
    previous = _LABEL_LINE.match(before)
    if label and previous and ord(previous[1].upper()) + 1 == ord(label[1]):
        return True
    is_labelled = _LABEL_LINE.match(line) is not None
    return (is_labelled and previous is not None) or bool(label and _LIST_BEGIN.search(lower(before)))


def _find_last_sentence(line: str, choices: Choices) -> str:
    """Return the last sentence of a line. "B. Iron" within a sentence is a letter with its option's text."""
    start = 0
    for mark in _SENTENCE_END.finditer(line):
        own = choices.texts.get(mark["letter"] or "")
        if not own or not lower(line[mark.end() :]).startswith(own):
            start = mark.end()
    return line[start:]


def _read_sentence(sentence: str, low: str, choices: Choices, is_alone: bool) -> tuple[Reading, str] | None:
    lead = _LEAD.match(low)
    start = lead.end() if lead else 0
    if (start or is_alone) and (reading := choices.read_whole(sentence[start:], is_strict=True)):
        return _with_form(reading, sentence[start:])
    if reading := _read_bracketed(sentence, low, choices):
        return reading, "bracketed"
    if "answer" in low:
        return None  # what is said of an answer was read as a statement, or is none
    if reading := _read_letter(sentence, low, start, choices):
        return reading, "closing"
    letter = _find_asserted_text(low, start, choices)
    return (Reading(letter, len(sentence), is_text=True), "option_text") if letter else None


def _with_form(reading: Reading, text: str) -> tuple[Reading, str] | None:
    if reading.letter is None:
        return None
    form = "bracketed" if text.lstrip().startswith(("(", "[")) else "closing"
    return reading, "option_text" if reading.is_text else form


def _read_bracketed(sentence: str, low: str, choices: Choices) -> Reading | None:
    """Read the only letter in brackets. It must be that of an option, not a symbol, as in "adenine (A)"."""
    found = [match for match in _BRACKETED.finditer(sentence) if match[1] in choices.letters]
    if len(found) != 1 or not _CONCLUDES.search(low):
        return None
    letter, before = found[0][1], low[: found[0].start()].rstrip()
    texts = choices.find_texts(low)
    own = choices.texts[letter]
    is_named = bool(before) and before.rsplit(" ", 1)[-1].strip(",:;\"'") in own.split()
    is_said = (
        re.search(r"\b(?:is|be|option|choice|answer|therefore|thus|hence|so|surely|to|with)[,:]?\Z", before) is not None
    )
    others = {named for named, begin, end in texts if named != letter}
    return Reading(letter, found[0].end()) if (is_named or is_said) and not others else None


def _read_letter(sentence: str, low: str, start: int, choices: Choices) -> Reading | None:
    for copula in _COPULA_LETTER.finditer(sentence) if _CONCLUDES.search(low) else ():
        if _GRADED.search(low, 0, copula.start()):
            break
        reading = choices.read_at(sentence, low, copula.end())
        if reading and reading.letter and not reading.is_text and _NAMES_AFTER.match(low, reading.end):
            return reading
    first = _LETTER_FIRST.match(low, start)
    letter = first and first["letter"].upper()
    if first and letter in choices.letters and sentence[first.start("letter")].isupper():
        return Reading(letter, first.end())
    return None


def _find_asserted_text(low: str, start: int, choices: Choices) -> str | None:
    """Return the letter of the only option whose text the sentence names, if it asserts it as its conclusion."""
    found = choices.find_texts(low)
    if len({letter for letter, _, _ in found}) != 1 or not _CONCLUDES.search(low):
        return None
    letter, begin, end = found[-1]
    is_short = low[begin:end] in _SHORT_WORDS or low[begin:end].replace(".", "").isdigit()
    if is_short:
        return None
    if _NAMES_AFTER.match(low, end) and _NAMES_BEFORE.search(low[:begin]):
        return letter
    return letter if found[0][1] <= start and _PREDICATE.match(low, found[0][2]) else None
