"""Paraphrases of the mini world's questions: the same patient, described in other sentences and another order."""

from __future__ import annotations

import random
import re

from medssr_dist.knowledge.mini_world import MiniCase
from medssr_dist.knowledge.vignettes import write_stem

_PATIENT = re.compile(r"An? \d+-[a-z]+-old (?P<noun>[a-z]+)")


def paraphrase(case: MiniCase, count: int) -> list[str]:
    """Return `count` further stems of a question: the same findings, age and sex."""
    rng = random.Random(f"{case.question.id}:paraphrases")
    own = _PATIENT.match(case.question.stem)
    assert own, case.question.stem
    stems: list[str] = []
    while len(stems) < count:
        shown = rng.sample(case.patient.shown, len(case.patient.shown))
        stem = write_stem(case.patient.disease, shown, case.patient.sex, rng)
        found = _PATIENT.match(stem)
        if found and found["noun"] == own["noun"]:  # the sentences depend on it
            stems.append(own[0] + stem[found.end() :])
    return stems
