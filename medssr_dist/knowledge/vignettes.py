"""Diagnosis questions with a ground truth from HPO: the embedded seeds, supervised and evaluation sets.

A question shows 3-5 frequent phenotypes of a disease and asks for it among four diseases of the same
split. The diagnosis is unique: at least two of the phenotypes shown fit no annotation of a distractor,
neither the same term nor one above or below it. Distractors are of other families and other genes.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from functools import cache

from medssr_dist.data.records import LETTERS, Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.hpo import (
    Disease,
    Phenotype,
    find_ancestors,
    find_descendants,
    load_diseases,
    load_rare_diseases,
    load_terms,
)
from medssr_dist.knowledge.names import decapitalize, derive_family, split_words
from medssr_dist.knowledge.splits import SPLITS, assign_split

DEFAULT_QUESTIONS = 200
OPTIONS = 4
MIN_ABSENT = 2  # phenotypes shown that each distractor must lack
_MIN_FREQUENCY = 0.3  # 'frequent' and more; annotations without a frequency count
_POOL = 10  # phenotypes shown are drawn from this many most frequent ones
_CANDIDATES = 60  # diseases sharing a phenotype that are weighed as distractors
_MALE, _FEMALE = ("HP:0010461",), ("HP:0010460", "HP:0000140")  # genitalia, menstrual cycle
_VAGUE = re.compile(r"abnormal|death|phenotyp|physiology", re.I)
_ROOT = "HP:0000118"

# Age by HPO's onset terms: (lowest, highest, unit).
_AGES = {
    "Congenital onset": (2, 27, "day"),
    "Neonatal onset": (2, 27, "day"),
    "Infantile onset": (2, 11, "month"),
    "Childhood onset": (2, 5, "year"),
    "Juvenile onset": (6, 15, "year"),
    "Young adult onset": (16, 39, "year"),
    "Adult onset": (20, 55, "year"),
    "Middle age onset": (40, 59, "year"),
    "Late onset": (60, 78, "year"),
}
_UNKNOWN_AGE = (2, 32, "year")
_SETTINGS_CHILD = (
    "is brought to a genetics clinic by the parents",
    "is referred to a children's hospital",
    "is seen by a pediatrician for a second opinion",
    "is evaluated on the pediatric ward",
    "is taken to a regional hospital by a worried family",
)
_SETTINGS_ADULT = (
    "is referred to a rare disease clinic",
    "is seen in an outpatient department",
    "comes to a university hospital for a second opinion",
    "is evaluated by a specialist after years without an explanation",
    "visits a general practitioner, who arranges a work-up",
)
_FINDINGS = (
    "Examination and work-up show {all}.",
    "The record lists {all}.",
    "The main findings are {all}.",
    "The history and tests are notable for {all}.",
    "The problems began with {first}. Over time the team also documents {rest}.",
    "The referral letter mentions {first}. Further assessment reveals {rest}.",
)
_CLOSINGS = (
    "",
    "Routine treatment has not helped.",
    "No earlier explanation was found.",
    "The team suspects a rare disease.",
    "The findings are thought to have one cause.",
)
_ASK = "Which of the following is the most likely diagnosis?"


def make_hpo_questions(name: str, limit: int = 0, random_seed: int = 0) -> list[Question]:
    """The first `limit` (0 = DEFAULT_QUESTIONS) questions of an embedded set, one a disease.

    Args:
        name: 'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'; their diseases are disjoint.
        random_seed: draws the order of the diseases and each question.

    Raises:
        InputError: unknown set, or fewer questions than asked for.
    """
    if name not in SPLITS:
        raise InputError(f"{name!r} is not an embedded set; choose one of {', '.join(SPLITS)}")
    diseases = list(_split_diseases(name))
    random.Random(random_seed).shuffle(diseases)
    wanted = limit or DEFAULT_QUESTIONS
    questions: list[Question] = []
    for disease in diseases:
        question = _make_question(disease, name, random.Random(f"{random_seed}:{disease.id}"))
        if question is not None:
            questions.append(question)
        if len(questions) == wanted:
            return questions
    raise InputError(f"{name} has {len(questions)} questions, {wanted} were asked for; lower its limit")


def find_hpo_truth(question: Question) -> str | None:
    """The letter that the stem's phenotypes point to by HPO alone, or None where HPO does not decide.

    HPO decides when the stem names at least two phenotypes, at least two options are names of HPO
    diseases, and exactly one of these is annotated with every phenotype named (or a term below it).
    """
    found = _phenotypes_named(question.stem)
    by_name = _by_name()
    known = {
        letter: by_name[split_words(text)] for letter, text in question.options.items() if split_words(text) in by_name
    }
    if len(found) < 2 or len(known) < 2:
        return None
    fitting = [
        letter
        for letter, annotated in known.items()
        if all(annotated & ({term} | find_descendants(term)) for term in found)
    ]
    return fitting[0] if len(fitting) == 1 else None


@cache
def _by_name() -> dict[tuple[str, ...], frozenset[str]]:
    """Disease name (as words) -> phenotype ids of all entries with that name."""
    annotated: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for disease in load_diseases().values():
        annotated[split_words(disease.name)].update(phenotype.id for phenotype in disease.phenotypes)
    return {name: frozenset(terms) for name, terms in annotated.items()}


@cache
def _term_by_name() -> dict[tuple[str, ...], str]:
    names = load_terms().names
    return {
        split_words(names[term]): term for term in find_descendants(_ROOT) if not names[term].startswith("obsolete")
    }


def _phenotypes_named(text: str) -> set[str]:
    """HPO terms whose names stand in `text`, longest match first, without those after a negation."""
    tokens, found, start = split_words(text), set(), 0
    longest = max(map(len, _term_by_name()))
    while start < len(tokens):
        for end in range(min(start + longest, len(tokens)), start, -1):
            term = _term_by_name().get(tokens[start:end])
            if term:
                if not {"no", "not", "without", "denies"} & set(tokens[max(0, start - 2) : start]):
                    found.add(term)
                start = end - 1
                break
        start += 1
    return found


@cache
def _split_diseases(name: str) -> tuple[Disease, ...]:
    return tuple(disease for disease in load_rare_diseases() if assign_split(disease) == name)


@cache
def _carriers(name: str) -> dict[str, list[Disease]]:
    """Phenotype id -> diseases of the split annotated with it."""
    carriers: dict[str, list[Disease]] = defaultdict(list)
    for disease in _split_diseases(name):
        for phenotype in disease.phenotypes:
            carriers[phenotype.id].append(disease)
    return carriers


def _make_question(disease: Disease, name: str, rng: random.Random) -> Question | None:
    """One question about `disease`, or None when its phenotypes do not single it out."""
    sex = _choose_sex(disease, rng)
    shown = _choose_phenotypes(disease, sex, rng)
    if len(shown) < 3:
        return None
    distractors = _choose_distractors(disease, shown, name, rng)
    if len(distractors) < OPTIONS - 1:
        return None
    options = [disease.name, *(distractor.name for distractor in distractors)]
    rng.shuffle(options)
    return Question.make(
        _stem(disease, shown, sex, rng),
        options,
        source=name,
        source_id=disease.id,
        truth=LETTERS[options.index(disease.name)],
        rare=True,
        topic=_organ_system(shown),
    )


def _organ_system(shown: list[Phenotype]) -> str:
    """The top branch of HPO that most of the phenotypes stand under; of several, the first by name."""
    systems = Counter(system for phenotype in shown for system in _systems_above(phenotype.id))
    return min(systems, key=lambda system: (-systems[system], system), default="")


@cache
def _systems_above(term: str) -> tuple[str, ...]:
    """Example: ("Abnormality of the nervous system",) for a seizure."""
    above = find_ancestors(term) | {term}
    return tuple(load_terms().names[system] for system in load_terms().children[_ROOT] if system in above)


def _choose_sex(disease: Disease, rng: random.Random) -> str:
    modes = " ".join(disease.inheritance)
    if "X-linked dominant" in modes:
        return "female"
    return "male" if "X-linked" in modes or "Y-linked" in modes else rng.choice(("male", "female"))


def _choose_phenotypes(disease: Disease, sex: str, rng: random.Random) -> list[Phenotype]:
    """3-5 of the most frequent telling phenotypes, none above or below another, none of the other sex."""
    other = _FEMALE if sex == "male" else _MALE
    named = set(split_words(disease.name))
    pool = [
        phenotype
        for phenotype in disease.phenotypes
        if phenotype.frequency >= _MIN_FREQUENCY
        and not _VAGUE.search(phenotype.name)
        and not named.issuperset(split_words(phenotype.name))
        and not find_ancestors(phenotype.id).union({phenotype.id}).intersection(other)
    ][:_POOL]
    rng.shuffle(pool)
    chosen: list[Phenotype] = []
    for phenotype in pool:
        if not any(_related(phenotype.id) & {one.id} for one in chosen):
            chosen.append(phenotype)
    return chosen[: rng.choice((3, 4, 4, 5))]


@cache
def _related(term: str) -> frozenset[str]:
    """The term with all above and below it: an annotation with any of these may fit it."""
    return find_ancestors(term) | find_descendants(term) | {term}


def _choose_distractors(disease: Disease, shown: list[Phenotype], name: str, rng: random.Random) -> list[Disease]:
    """Three diseases that lack MIN_ABSENT of the phenotypes shown, those that share most of the others first."""
    sharing = {other.id: other for phenotype in shown for other in _carriers(name)[phenotype.id]}
    candidates = rng.sample(list(sharing.values()), min(len(sharing), _CANDIDATES))
    candidates = sorted(candidates, key=lambda other: _absent(other, shown))
    candidates += rng.sample(_split_diseases(name), OPTIONS * 5)
    chosen: list[Disease] = []
    for other in candidates:
        if _absent(other, shown) >= MIN_ABSENT and not any(_alike(other, one) for one in [disease, *chosen]):
            chosen.append(other)
        if len(chosen) == OPTIONS - 1:
            break
    return chosen


def _absent(disease: Disease, shown: list[Phenotype]) -> int:
    """How many of the phenotypes shown fit no entry of that name."""
    annotated = _by_name()[split_words(disease.name)]
    return sum(annotated.isdisjoint(_related(phenotype.id)) for phenotype in shown)


def _alike(one: Disease, other: Disease) -> bool:
    return derive_family(one.name) == derive_family(other.name) or not set(one.genes).isdisjoint(other.genes)


def _stem(disease: Disease, shown: list[Phenotype], sex: str, rng: random.Random) -> str:
    names = [decapitalize(phenotype.name) for phenotype in shown]
    patient, adult = _patient(disease, sex, rng)
    setting = rng.choice(_SETTINGS_ADULT if adult else _SETTINGS_CHILD)
    findings = rng.choice(_FINDINGS).format(all=_listing(names), first=names[0], rest=_listing(names[1:]))
    closing = rng.choice(_CLOSINGS)
    return " ".join(part for part in (f"{patient} {setting}.", findings, closing, _ASK) if part)


def _listing(names: list[str]) -> str:
    separator = "; " if any("," in name for name in names) else ", "
    if len(names) == 2:
        return " and ".join(names)
    return separator.join(names[:-1]) + f"{separator}and {names[-1]}"


def _patient(disease: Disease, sex: str, rng: random.Random) -> tuple[str, bool]:
    """('A 7-year-old girl', False): age by the disease's onset, and whether the patient is an adult."""
    lowest, highest, unit = _AGES.get(rng.choice(disease.onset or ("",)), _UNKNOWN_AGE)
    age = rng.randint(lowest, highest)
    adult = unit == "year" and age >= 18
    noun = {("male", True): "man", ("female", True): "woman", ("male", False): "boy", ("female", False): "girl"}
    article = "An" if age in (8, 11, 18) else "A"
    return f"{article} {age}-{unit}-old {noun[sex, adult]}", adult
