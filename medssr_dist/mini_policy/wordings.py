"""Wordings of the mini policy's text, besides those of `knowledge.vignettes`: stems, reasoning lines, passages.

Several wordings, with findings joined in several ways, teach the policy to read questions that others write.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from medssr_dist.knowledge.hpo import Disease, Phenotype
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.vignettes import write_stem
from medssr_dist.offline_teacher.common_questions import rephrase_stem
from medssr_dist.offline_teacher.facts import Facts
from medssr_dist.offline_teacher.rare_questions import write_diagnosis_stem

SHORT_SHARE = 0.6  # of these stems: patient and findings in one sentence
REASONS = (
    "Decisive: {findings}. This is {disease}.",
    "The findings {findings} point to {disease}.",
    "With {findings}, the best fit is {disease}.",
    "Typical of this disease are {findings}. It is {disease}.",
)
_FORWARD = (
    "{disease} is a rare disease. Its features are {findings}.",
    "{disease}: {findings}.",
    "Patients with {disease} have {findings}.",
    "{findings} are features of {disease}.",
    "{findings}: {disease}.",
    "A patient with {findings} may have {disease}.",
)
_SETTINGS = (
    "{patient} presents to the clinic.",
    "{patient} is admitted to hospital.",
    "{patient} sees a specialist.",
    "A physician is consulted about {lower}.",
    "The case of {lower} is discussed at a conference.",
    "{patient} is followed for a chronic illness.",
)
_SHORT = ("{patient} has {all}.", "{patient} with {all}.", "Findings in {lower}: {all}.")
_FINDINGS = (
    "There is {all}.",
    "Documented findings are {all}.",
    "Complaints and signs include {all}.",
    "First {first} was seen, later {rest}.",
    "The chart mentions {first}. Also present: {rest}.",
    "Known for {first}, with {rest} found on examination.",
)
_CLUES = (
    *("", "", "", ""),
    *("Treatment was of no use.", "The family history is not informative.", "Earlier tests gave no result."),
)
_ASKS = (
    "Which of the following is the most likely diagnosis?",
    "What is the most likely diagnosis?",
    "Which of these diseases explains the findings best?",
    "Which disorder is most likely?",
    "Which condition should be suspected?",
)


def write_other_stem(disease: Disease, shown: list[Phenotype], sex: str, rng: random.Random) -> str:
    """Write a vignette of a patient with the phenotypes `shown`, and a question for the diagnosis."""
    names = [decapitalize(one.name) for one in shown]
    age = rng.randint(1, 70)
    noun = {True: ("girl", "boy"), False: ("woman", "man")}[age < 18][sex == "male"]
    patient = f"{'An' if age in (8, 11, 18) else 'A'} {age}-year-old {noun}"
    forms = [rng.choice(_SHORT)] if rng.random() < SHORT_SHARE else [rng.choice(_SETTINGS), rng.choice(_FINDINGS)]
    case = " ".join(forms).format(
        patient=patient,
        lower=patient[:1].lower() + patient[1:],
        all=_join(names, rng),
        first=names[0],
        rest=_join(names[1:], rng),
    )
    clue = rng.choice(_CLUES)
    if disease.inheritance and rng.random() < 0.1:
        clue = f"The family history fits {decapitalize(disease.inheritance[0])}."
    return " ".join(part for part in (case, clue, rng.choice(_ASKS)) if part)


def write_stem_in_any_wording(disease: Disease, shown: list[Phenotype], sex: str, rng: random.Random) -> str:
    """Write a vignette as the question sets do, as the offline teacher does with or without passages, or otherwise."""
    form = rng.random()
    if form < 0.25:
        return write_stem(disease, shown, sex, rng)
    if form < 0.5:
        return rephrase_stem(write_stem(disease, shown, sex, rng), rng)
    if form < 0.8:
        modes = tuple(mode.removesuffix(" inheritance") for mode in disease.inheritance)
        facts = Facts((), disease.genes, modes, " ".join(disease.onset), "")
        return write_diagnosis_stem(disease.name, facts, [decapitalize(one.name) for one in shown], rng)
    return write_other_stem(disease, shown, sex, rng)


def write_passage(disease: Disease, findings: Sequence[str], rng: random.Random) -> str:
    """Write a passage about `disease` with `findings`; sometimes also its inheritance."""
    forms = REASONS if rng.random() < 0.6 else _FORWARD
    text = rng.choice(forms).format(disease=disease.name, findings=_join(findings, rng))
    if disease.inheritance and rng.random() < 0.2:
        text += f" Inheritance: {decapitalize(disease.inheritance[0]).removesuffix(' inheritance')}."
    return text[:1].upper() + text[1:]


def _join(names: Sequence[str], rng: random.Random) -> str:
    if len(names) == 1:
        return names[0]
    separator = "; " if any("," in name for name in names) else ", "
    last = rng.choice((" and ", ", and ", separator))
    return separator.join(names[:-1]) + last + names[-1]
