"""Invented patients: the only part of a composed vignette that does not come from a passage."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Age in years, from and to, by a word in the passage's onset; findings need time to develop.
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
    """The words for a patient in a vignette; the pronouns are capitalised.

    Example: Patient("an 8-year-old girl", "She", "Her")
    """

    article_noun: str
    subject: str
    possessive: str


def draw_patient(rng: random.Random, onset: str, modes: tuple[str, ...]) -> Patient:
    """Draw a patient whose age fits the onset of the disease and whose sex fits its inheritance."""
    fitting = [ages for word, ages in _AGES.items() if word in onset.lower()]
    age = rng.randint(*(rng.choice(fitting) if fitting else _ANY_AGE))
    male = modes == ("X-linked recessive",) or rng.random() < 0.5
    noun = ("boy" if male else "girl") if age < 18 else ("man" if male else "woman")
    return Patient(f"{choose_article(age)} {age}-year-old {noun}", "He" if male else "She", "His" if male else "Her")


def choose_article(number: int) -> str:
    """Return 'an' before 8, 11, 18 and 80 to 89, else 'a'."""
    return "an" if number in (8, 11, 18) or 80 <= number <= 89 else "a"
