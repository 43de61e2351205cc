"""Whether a sentence says something or only supposes, doubts, denies or quotes it. All texts are in lower case."""

from __future__ import annotations

import re

_UNSURE = re.compile(
    r"\b(?:if|unless|whether|suppos\w+|assum(?:e|ing)|imagine|hypothetically|perhaps|maybe|possibly|doubt|wonder\w*"
    r"|(?:had|were|should) (?:the|he|she|it|this|there|they)|tempt\w+|at first|initially|originally"
    r"|(?:some|one|many|others?|you|they|people|students?|few|most) (?:\w+ )?(?:would|could|might|may|will|say|think"
    r"|argue|choose"
    r"|believe)|(?:not|hardly|never) (?:\w+ )?(?:think|believe|say|agree|conclude|mean|sure|certain|convinced|clear"
    r"|claim|follow)"
    r"|(?:wrong|incorrect|false|mistake|unlikely|premature|hard|difficult|impossible|unable|not possible) (?:to|that)"
    r"|no (?:evidence|proof|reason|sign|guarantee) (?:\w+ )?(?:that|(?:suggest|indicat|show|support|prov)\w+)"
    r"|(?:might|may|could) (?:think|say|seem|suggest|argue"
    r"|believe|conclude|choose)|(?:format|form|example|instance"
    r"|reply with|end with|respond with|write))\b"
    r"|n't (?:\w+ )?(?:think|believe|say|agree|conclude|mean|sure|certain|convinced|clear|claim|follow)\b"
)
_QUOTED = re.compile(
    r"(?<!\bi )(?<!\bwe )\b(?:says|said|thinks|thought|claims|claimed|argues|argued|believes|believed|[a-z]{3,20}'s)"
    r"(?: that)?(?: the)?(?: (?:correct|right|best|final))? ?\Z"
)
_FORCED = re.compile(r"\bif (?:i|we) (?:had to|have to|must|need to)|\bif (?:forced|asked|pressed)")
_RESET = re.compile(r"\b(?:therefore|thus|hence|so|consequently|but|yet|however)\b")
_CONDITION = re.compile(r"[^.\n]{0,150}?\b(?:if|unless|had|were)\b")
# "A." within a sentence is a label or an initial, unless the letter is what the sentence says.
_SENTENCE_END = re.compile(
    r"(?:(?<![\s(][a-z])|(?<= be [a-z])|(?<= is [a-z])|(?<=ion [a-z])|(?<=ice [a-z]))[.!?](?=\s)|[\n;。]"
)


def find_sentence(low: str, end: int) -> int:
    """Return where the sentence begins that holds the character before `end`; at most 160 characters before."""
    start = max(0, end - 160)
    for mark in _SENTENCE_END.finditer(low, start, end):
        start = mark.end()
    return start


def is_doubted(low: str, start: int, end: int) -> bool:
    """Whether the words from `start` to `end` make what follows a doubt: "if ...", "some would say", "I don't think".

    What stands before "therefore", "but" and their like does not count.
    """
    for reset in _RESET.finditer(low, start, end):
        start = reset.end()
    if _QUOTED.search(low, start, end):
        return True
    return _UNSURE.search(low, start, end) is not None and not _FORCED.search(low, start, end)


def has_condition(low: str, at: int) -> bool:
    """Whether a condition follows in the sentence, as in "would be B if ..."."""
    return _CONDITION.match(low, at) is not None
