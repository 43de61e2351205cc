"""Questions without injected knowledge: a seed for another patient, with one option of the other seed.

All findings and options of the seed are kept, because the prompt does not state which option is correct.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from medssr_dist.offline_teacher.patients import choose_article
from medssr_dist.offline_teacher.reading import PromptParts, split_sentences

_MAX_WORDS = 80
_AGE = re.compile(r"\b([Aa]n?) (\d+)([- ](?:year|month|week|day|hour)s?[- ]old)")
# Sentences about normal findings are dropped first if a stem is too long.
_UNREMARKABLE = re.compile(
    r"within normal limits|no abnormalit|unremarkable|immuniz|vaccin|vital signs|appears well|noncontributory|"
    r"is at the \d+|is otherwise healthy|denies|no history of|°|mm ?Hg",
    re.IGNORECASE,
)
_OPENINGS = ("Considering this presentation,", "Based on the information given,", "In this situation,", "Overall,")
_LEAD_INS = ("Consider the following.", "The following is presented at rounds.", "A colleague asks for advice.")
_QUESTION_WORD = re.compile(r"^(?:Which|What|How|Why|Where|When|Who|The|This|A|An|Of|In|If)\b")


class CommonDraft(NamedTuple):
    """A question with its options in the order in which they are shown.

    Example: CommonDraft("What drug treats gout?", ["Colchicine", "Insulin"])
    """

    stem: str
    options: list[str]


def compose_common(prompt: PromptParts, rng: random.Random, most_options: int) -> CommonDraft:
    """Compose a question with at most `most_options` options."""
    base, other = rng.sample(prompt.seeds, 2)
    options = list(base.options)
    known = {option.casefold() for option in options}
    fresh = [option for option in other.options if option.casefold() not in known]
    if fresh and len(options) < most_options and base.asks_diagnosis and other.asks_diagnosis:
        options.append(rng.choice(fresh))
    rng.shuffle(options)
    return CommonDraft(rephrase_stem(base.stem, rng), options[:most_options])


def rephrase_stem(stem: str, rng: random.Random) -> str:
    """Return the stem about a patient of another age, with other words around the case and before the question."""
    *case, ask = split_sentences(stem)
    old = " ".join(_shorten(case, len(ask.split())))
    new = _AGE.sub(lambda match: _change_age(match, rng), old, count=1)
    if new == old or rng.random() < 0.4:
        new = f"{rng.choice(_LEAD_INS)} {new}".strip()
    return f"{new} {_reword(ask, rng)}"


def _reword(ask: str, rng: random.Random) -> str:
    if not _QUESTION_WORD.match(ask):
        return ask
    return f"{rng.choice(_OPENINGS)} {ask[0].lower()}{ask[1:]}"


def _shorten(case: list[str], used: int) -> list[str]:
    """Drop unremarkable sentences, except the first, while the stem is too long; `used` counts other words."""
    kept = list(case)
    for sentence in case[1:]:
        if sum(len(part.split()) for part in kept) + used <= _MAX_WORDS:
            break
        if _UNREMARKABLE.search(sentence):
            kept.remove(sentence)
    return kept


def _change_age(match: re.Match[str], rng: random.Random) -> str:
    """Return an age near the old one; children stay children, adults stay adults."""
    old = int(match.group(2))
    low, high = (18, 99) if old >= 18 else (1, 17)
    spread = max(1, old // 6)
    near = [age for age in range(max(low, old - spread), min(high, old + spread) + 1) if age != old]
    age = rng.choice(near or [old])
    shown = choose_article(age).capitalize() if match.group(1)[0].isupper() else choose_article(age)
    return f"{shown} {age}{match.group(3)}"
