"""Invented patients: the only thing in a composed vignette that no passage tells."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Age in years at which a patient is seen, by a word in the passage's onset; findings need time to show.
_AGES = {
    "congenital": (2, 14),
    "antenatal": (2, 10),
    "fetal": (2, 10),
    "neonatal": (2, 12),
    "infantile": (3, 14),
    "childhood": (8, 17),
    "juvenile": (14, 26),
    "young adult": (24, 45),
    "adult": (28, 62),
    "middle age": (45, 66),
    "late": (58, 78),
}
_ANY_AGE = (4, 48)


@dataclass(frozen=True)
class Patient:
    """`article_noun` reads 'an 8-year-old girl'; the pronouns are capitalised."""

    article_noun: str
    subject: str
    possessive: str


def draw_patient(rng: random.Random, onset: str, modes: tuple[str, ...]) -> Patient:
    """A patient whose age fits the disease's onset, and whose sex fits its inheritance."""
    fitting = [ages for word, ages in _AGES.items() if word in onset.lower()]
    age = rng.randint(*(rng.choice(fitting) if fitting else _ANY_AGE))
    male = modes == ("X-linked recessive",) or rng.random() < 0.5
    noun = ("boy" if male else "girl") if age < 18 else ("man" if male else "woman")
    return Patient(f"{article(age)} {age}-year-old {noun}", "He" if male else "She", "His" if male else "Her")


def article(number: int) -> str:
    """'an' before 8, 11, 18 and the eighties, else 'a'."""
    return "an" if number in (8, 11, 18) or 80 <= number <= 89 else "a"
