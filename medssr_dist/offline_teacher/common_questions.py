"""Questions without injected knowledge: one seed retold for another patient, with an option of the other seed.

The seed's findings and all its options are kept, since which option is right is not in the prompt.
"""

from __future__ import annotations

import random
import re

from medssr_dist.offline_teacher.patients import article
from medssr_dist.offline_teacher.reading import PromptParts, sentences

_MAX_WORDS = 80
_AGE = re.compile(r"\b([Aa]n?) (\d+)([- ](?:year|month|week|day|hour)s?[- ]old)")
# Sentences that tell nothing abnormal go first when a stem is too long.
_UNREMARKABLE = re.compile(
    r"within normal limits|no abnormalit|unremarkable|immuniz|vaccin|vital signs|appears well|noncontributory|"
    r"is at the \d+|is otherwise healthy|denies|no history of|°|mm ?Hg",
    re.IGNORECASE,
)
_OPENINGS = ("Considering this presentation,", "Based on the information given,", "In this situation,", "Overall,")
_LEAD_INS = ("Consider the following.", "The following is presented at rounds.", "A colleague asks for advice.")
_QUESTION_WORD = re.compile(r"^(?:Which|What|How|Why|Where|When|Who|The|This|A|An|Of|In|If)\b")


def compose_common(prompt: PromptParts, rng: random.Random, most_options: int) -> tuple[str, list[str]]:
    """Stem and at most so many options, in the order in which they are to be shown."""
    base, other = rng.sample(prompt.seeds, 2)
    options = list(base.options)
    known = {option.casefold() for option in options}
    fresh = [option for option in other.options if option.casefold() not in known]
    if fresh and len(options) < most_options and base.asks_diagnosis and other.asks_diagnosis:
        options.append(rng.choice(fresh))
    rng.shuffle(options)
    return _retell(base.stem, rng), options[:most_options]


def _retell(stem: str, rng: random.Random) -> str:
    *told, ask = sentences(stem)
    told = _shorten(told, len(ask.split()))
    case = " ".join(told)
    retold = _AGE.sub(lambda match: _other_age(match, rng), case, count=1)
    if retold == case or rng.random() < 0.4:
        retold = f"{rng.choice(_LEAD_INS)} {retold}".strip()
    return f"{retold} {_reword(ask, rng)}"


def _reword(ask: str, rng: random.Random) -> str:
    if not _QUESTION_WORD.match(ask):
        return ask
    return f"{rng.choice(_OPENINGS)} {ask[0].lower()}{ask[1:]}"


def _shorten(told: list[str], used: int) -> list[str]:
    """Drop unremarkable sentences, but not the first, while the stem is too long."""
    kept = list(told)
    for sentence in told[1:]:
        if sum(len(part.split()) for part in kept) + used <= _MAX_WORDS:
            break
        if _UNREMARKABLE.search(sentence):
            kept.remove(sentence)
    return kept


def _other_age(match: re.Match, rng: random.Random) -> str:
    """An age near the old one, on the same side of adulthood."""
    old = int(match.group(2))
    low, high = (18, 99) if old >= 18 else (1, 17)
    spread = max(1, old // 6)
    near = [age for age in range(max(low, old - spread), min(high, old + spread) + 1) if age != old]
    age = rng.choice(near or [old])
    shown = article(age).capitalize() if match.group(1)[0].isupper() else article(age)
    return f"{shown} {age}{match.group(3)}"
