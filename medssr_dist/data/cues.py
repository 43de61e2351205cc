"""The words at which a statement of the answer may stand, found by plain search: long replies cost little."""

from __future__ import annotations

import re
from typing import NamedTuple

_MOST = 300  # cues that are read; a reply that repeats itself has more, and its last ones count


class Cue(NamedTuple):
    """A place at which a statement may stand.

    Example: Cue(4, 10, "noun"): "answer" in "The answer is B."

    Attributes:
        start, end: the word's place in the text.
        kind: what may follow: tag, boxed, json, noun, script, option, pick, making, correction or hashes.
    """

    start: int
    end: int
    kind: str


# What to search for -> the pattern that the place must match, and the kind. All texts are in lower case.
_TAG_NAME = r"(?:final[_ -]?|correct[_ -]?)?answer(?:[_ -]?(?:choice|letter))?"
_STEMS = {
    "answer": (re.compile(r"(?<![a-z-])answers?(?![a-z])"), "noun"),
    "choice": (re.compile(r"(?<![a-z])choice(?![a-z])"), "option"),
    "option": (re.compile(r"(?<![a-z])option(?![a-z])"), "option"),
    "boxed": (re.compile(r"(?<=\\)boxed ?\{?|(?<=\\f)boxed ?\{?"), "boxed"),
    "<answer": (re.compile(rf"<{_TAG_NAME}>"), "tag"),
    "<final": (re.compile(rf"<{_TAG_NAME}>"), "tag"),
    "<ans>": (re.compile(r"<ans>"), "tag"),
    "<choice>": (re.compile(r"<choice>"), "tag"),
    "[answer]": (re.compile(r"\[answer\]"), "tag"),
    "<|begin_of_box|>": (re.compile(r"<\|begin_of_box\|>"), "tag"),
    '"prediction"': (re.compile(r"\"prediction\" ?: ?"), "json"),
    '"selected"': (re.compile(r"\"selected\" ?: ?"), "json"),
    "my pick": (re.compile(r"\bmy pick\b"), "noun"),
    "####": (re.compile(r"#{4} "), "hashes"),
    "choos": (re.compile(r"\bchoos(?:e|ing)\b"), "pick"),
    "chose ": (re.compile(r"\bchose\b"), "pick"),
    "pick ": (re.compile(r"\bpick\b"), "pick"),
    "select": (re.compile(r"\bselect(?:ed|ing)?\b"), "pick"),
    "go with": (re.compile(r"\bgo with\b"), "pick"),
    "going with": (re.compile(r"\bgoing with\b"), "pick"),
    "opt for": (re.compile(r"\bopt for\b"), "pick"),
    "settle on": (re.compile(r"\bsettle on\b"), "pick"),
    "d say": (re.compile(r"d say\b(?: that)?(?: it(?:'s| is))?"), "pick"),
    "mak": (re.compile(r"\bmak(?:ing|es?)\b"), "making"),
    "leav": (re.compile(r"\bleav(?:ing|es?)\b"), "making"),
    "left with": (re.compile(r"\bleft with\b"), "making"),
    "correction": (re.compile(r"\bcorrection\b[,:;.! -]*"), "correction"),
    "actually": (re.compile(r"\bactually\b[,:;.! -]*"), "correction"),
    "scratch that": (re.compile(r"\bscratch that\b[,:;.! -]*"), "correction"),
    "i mean": (re.compile(r"\bi meant?\b[,:;.! -]*"), "correction"),
    "or rather": (re.compile(r"\bor rather\b[,:;.! -]*"), "correction"),
    "wait": (re.compile(r"\bwait[,:;.! -]+"), "correction"),
    "no,": (re.compile(r"\bno[,:;.! -]+"), "correction"),
    "so it": (re.compile(r"\bso it(?:'s| is)\b"), "correction"),
    "sorry": (re.compile(r"\bsorry[,:;.! -]+"), "correction"),
    "make that": (re.compile(r"\bmake that\b[,:;.! -]*"), "correction"),
    "it should": (re.compile(r"\bit should (?:rather |instead )?be\b"), "correction"),
    "it must": (re.compile(r"\bit must (?:rather |instead )?be\b"), "correction"),
    **{
        word: (re.compile(rf"\b{word}(?:et)?\b"), "noun")
        for word in ["respuesta", "resposta", "risposta", "reponse", "antwort", "antwoord", "jawaban", "cevap", "svar"]
        + ["vastaus", "odpowiedz", "odpoved", "raspuns", "ans"]
    },
}
_JSON_KEY = re.compile(
    r"[\"'](?:final_?|correct_?|best_?|selected_?|predicted_?|chosen_?)?(?:answer|choice|option)"
    r"[_ ]?(?:choice|letter|option|idx|index|key)?[\"'] ?[:=] ?"
)
_OTHER_SCRIPTS = {
    **{
        word: (re.compile(rf"\b{word}\b"), "noun")
        for word in [
            "réponse",
            "odpowiedź",
            "odpověď",
            "yanıt",
            "răspuns",
            "răspunsul",
            "đáp án",
            "câu trả lời",
            "ответ",
        ]
        + ["відповідь", "απάντηση", "opción", "opção", "lösung"]
    },
    **{
        word: (re.compile(word), "script")
        for word in [
            "答案",
            "答え",
            "解答",
            "正解",
            "回答",
            "正确选项",
            "最佳选项",
            "正確選項",
            "정답",
            "답은",
            "답:",
            "答:",
        ]
        + ["الإجابة", "الجواب", "उत्तर", "תשובה", "پاسخ", "คำตอบ"]
    },
    "选": (re.compile(r"(?<![不可供挑筛])选择?(?![项出自取中用])"), "script"),
    "選": (re.compile(r"(?<![不可])選擇?(?![項出自取中用択肢])"), "script"),
}


def find_cues(low: str) -> list[Cue]:
    """Return the cues of a lower-case text, in its order; of very many, the last ones."""
    stems = _STEMS if low.isascii() else _STEMS | _OTHER_SCRIPTS
    cues: list[Cue] = []
    for stem, (pattern, kind) in stems.items():
        at = low.find(stem)
        while at >= 0:
            if match := pattern.match(low, at):
                cues.append(_classify(low, Cue(at, match.end(), kind)))
            at = low.find(stem, at + len(stem))
    cues.sort()
    return cues[-_MOST:]


def _classify(low: str, cue: Cue) -> Cue:
    """Return the cue as the JSON key that it may be a part of."""
    if cue.kind not in ("noun", "option"):
        return cue
    begin = max(0, cue.start - 12)
    quote = max(low.rfind('"', begin, cue.start), low.rfind("'", begin, cue.start))
    key = _JSON_KEY.match(low, quote) if quote >= 0 else None
    return Cue(quote, key.end(), "json") if key and key.end() > cue.end else cue
