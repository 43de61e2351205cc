"""Diagnosis questions whose answer follows from HPO: the embedded seeds, supervised set and evaluation set.

A question describes a patient with 3 to 5 frequent phenotypes of a disease and asks for the diagnosis among four
diseases of the same split. The answer is unique: at least two of the phenotypes match no annotation of a distractor,
where a term also matches the terms above and below it. Distractors have other families and other genes.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from functools import cache
from typing import NamedTuple

from medssr_dist.data.records import LETTERS, Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.hpo import (
    Disease,
    Phenotype,
    find_ancestors,
    find_descendants,
    load_diseases,
    load_terms,
)
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.names import decapitalize, derive_family, split_words
from medssr_dist.knowledge.rare_diseases import find_annotations, load_rare_diseases
from medssr_dist.knowledge.splits import SPLITS, assign_split

DEFAULT_QUESTIONS = 200
OPTIONS = 4
MIN_ABSENT = 2  # phenotypes of the question that every distractor lacks, at least
_MIN_FREQUENCY = 0.3  # 'frequent' or more; annotations without a frequency are included
_POOL = 10  # the phenotypes are drawn from this number of most frequent ones
_CANDIDATES = 60  # diseases with a common phenotype that are compared as distractors
_MALE, _FEMALE = ("HP:0010461",), ("HP:0010460", "HP:0000140")  # genitalia, menstrual cycle
_VAGUE = re.compile(r"abnormal|death|phenotyp|physiology", re.I)
_ROOT = "HP:0000118"

# HPO's onset term -> age of the patient: lowest, highest, unit.
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


class _Patient(NamedTuple):
    text: str
    is_adult: bool


def make_hpo_questions(name: str, limit: int = 0, random_seed: int = 0) -> list[Question]:
    """Make the first `limit` (0 = DEFAULT_QUESTIONS) questions of an embedded set, one per disease.

    Args:
        name: 'hpo:seeds', 'hpo:supervised' or 'hpo:evaluation'; their diseases are disjoint.
        random_seed: determines the order of the diseases and every question.

    Raises:
        InputError: the set is unknown or has fewer than `limit` questions.
    """
    if name not in SPLITS:
        raise InputError(f"{name!r} is not an embedded set; choose one of {', '.join(SPLITS)}")
    diseases = list(_list_diseases(name))
    random.Random(random_seed).shuffle(diseases)
    wanted = limit or DEFAULT_QUESTIONS
    questions: list[Question] = []
    for disease in diseases:
        question = _make_question(disease, name, random.Random(f"{random_seed}:{disease.id}"))
        if question is not None:
            questions.append(question)
        if len(questions) == wanted:
            return questions
    raise InputError(f"{name} has {len(questions)} questions, but its limit is {wanted}; lower the limit")


def find_hpo_truth(question: Question) -> str | None:
    """Return the letter of the answer according to HPO, or None if HPO does not determine one.

    It does if the stem names at least two phenotypes, at least two options are names of HPO diseases, and exactly one
    of these diseases is annotated with every named phenotype (or with a term below it).
    """
    found = _find_phenotypes(question.stem)
    by_name = _index_names()
    options = {letter: split_words(text) for letter, text in question.options.items()}
    known = {letter: by_name[name] for letter, name in options.items() if name in by_name}
    if len(found) < 2 or len(known) < 2:
        return None
    wanted = [{term} | find_descendants(term) for term in found]
    fitting = [letter for letter, annotated in known.items() if all(annotated & terms for terms in wanted)]
    return fitting[0] if len(fitting) == 1 else None


@cache
def _index_names() -> dict[tuple[str, ...], frozenset[str]]:
    """Return disease name (as words) -> phenotype ids of all entries of HPO that have the name or are this disease."""
    annotated: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for disease in (*load_diseases().values(), *load_rare_diseases()):
        for entry in (disease, *find_annotations(disease.id)):
            annotated[split_words(disease.name)].update(phenotype.id for phenotype in entry.phenotypes)
    return {name: frozenset(terms) for name, terms in annotated.items()}


@cache
def _index_terms() -> dict[tuple[str, ...], str]:
    """Return phenotype name (as words) -> HPO id."""
    names = load_terms().names
    current = (term for term in find_descendants(_ROOT) if not names[term].startswith("obsolete"))
    return {split_words(names[term]): term for term in current}


def _find_phenotypes(text: str) -> set[str]:
    """Return the HPO terms named in `text`, without those after a negation; the longest match wins."""
    tokens, found, start = split_words(text), set(), 0
    longest = max(map(len, _index_terms()))
    while start < len(tokens):
        for end in range(min(start + longest, len(tokens)), start, -1):
            term = _index_terms().get(tokens[start:end])
            if term:
                if not {"no", "not", "without", "denies"} & set(tokens[max(0, start - 2) : start]):
                    found.add(term)
                start = end - 1
                break
        start += 1
    return found


@cache
def _list_diseases(name: str) -> tuple[Disease, ...]:
    return tuple(disease for disease in load_rare_diseases() if assign_split(disease) == name)


@cache
def _group_by_phenotype(name: str) -> dict[str, list[Disease]]:
    """Return phenotype id -> diseases of the split that are annotated with it."""
    carriers: dict[str, list[Disease]] = defaultdict(list)
    for disease in _list_diseases(name):
        for phenotype in disease.phenotypes:
            carriers[phenotype.id].append(disease)
    return carriers


def _make_question(disease: Disease, name: str, rng: random.Random) -> Question | None:
    """Return a question about `disease`, or None if its phenotypes do not distinguish it from other diseases."""
    sex = choose_sex(disease, rng)
    shown = choose_phenotypes(disease, sex, rng)
    if len(shown) < 3:
        return None
    distractors = _choose_distractors(disease, shown, name, rng)
    if len(distractors) < OPTIONS - 1:
        return None
    options = [disease.name, *(distractor.name for distractor in distractors)]
    rng.shuffle(options)
    return Question.make(
        write_stem(disease, shown, sex, rng),
        options,
        source=name,
        source_id=disease.id,
        truth=LETTERS[options.index(disease.name)],
        rare=True,
        topic=find_organ_system(shown),
    )


def find_organ_system(shown: list[Phenotype]) -> str:
    """Return the name of the top branch of HPO with most of the phenotypes; of several, the first by name."""
    systems = Counter(system for phenotype in shown for system in _list_systems(phenotype.id))
    return min(systems, key=lambda system: (-systems[system], system), default="")


@cache
def _list_systems(term: str) -> tuple[str, ...]:
    """Return the top branches above `term`, such as ("Abnormality of the nervous system",) for a seizure."""
    above = find_ancestors(term) | {term}
    return tuple(load_terms().names[system] for system in load_terms().children[_ROOT] if system in above)


def choose_sex(disease: Disease, rng: random.Random) -> str:
    """Return 'male' or 'female', as the inheritance of the disease allows."""
    modes = " ".join(disease.inheritance)
    if "X-linked dominant" in modes:
        return "female"
    return "male" if "X-linked" in modes or "Y-linked" in modes else rng.choice(("male", "female"))


def list_frequent_phenotypes(disease: Disease) -> list[Phenotype]:
    """Return the frequent specific phenotypes whose words are not all in the disease's name."""
    named = set(split_words(disease.name))
    return [
        phenotype
        for phenotype in disease.phenotypes
        if phenotype.frequency >= _MIN_FREQUENCY
        and not _VAGUE.search(phenotype.name)
        and not named.issuperset(split_words(phenotype.name))
    ]


def choose_phenotypes(disease: Disease, sex: str, rng: random.Random) -> list[Phenotype]:
    """Return 3 to 5 of the most frequent specific phenotypes, unrelated to each other and possible for `sex`.

    Returns fewer if the disease has not so many.
    """
    other = _FEMALE if sex == "male" else _MALE
    pool = [
        phenotype
        for phenotype in list_frequent_phenotypes(disease)
        if not find_ancestors(phenotype.id).union({phenotype.id}).intersection(other)
    ][:_POOL]
    rng.shuffle(pool)
    chosen: list[Phenotype] = []
    for phenotype in pool:
        if not any(_find_related(phenotype.id) & {one.id} for one in chosen):
            chosen.append(phenotype)
    return chosen[: rng.choice((3, 4, 4, 5))]


@cache
def _find_related(term: str) -> frozenset[str]:
    """Return `term` and all terms above and below it: an annotation with any of these may match it."""
    return find_ancestors(term) | find_descendants(term) | {term}


def _choose_distractors(disease: Disease, shown: list[Phenotype], name: str, rng: random.Random) -> list[Disease]:
    """Return up to three diseases that lack MIN_ABSENT of the phenotypes; those with most of the others come first."""
    sharing = {other.id: other for phenotype in shown for other in _group_by_phenotype(name)[phenotype.id]}
    candidates = rng.sample(list(sharing.values()), min(len(sharing), _CANDIDATES))
    candidates = sorted(candidates, key=lambda other: count_absent(other, shown))
    candidates += rng.sample(_list_diseases(name), OPTIONS * 5)
    chosen: list[Disease] = []
    for other in candidates:
        if count_absent(other, shown) >= MIN_ABSENT and not any(is_alike(other, one) for one in [disease, *chosen]):
            chosen.append(other)
        if len(chosen) == OPTIONS - 1:
            break
    return chosen


def count_absent(disease: Disease, shown: list[Phenotype]) -> int:
    """Return how many of the phenotypes match no HPO entry of the disease."""
    matching = find_matching(disease)
    return sum(phenotype.id not in matching for phenotype in shown)


@cache
def find_matching(disease: Disease) -> frozenset[str]:
    """Return the ids of all phenotypes that match an annotation of the disease: these, and those above and below."""
    return frozenset().union(*map(_find_related, _index_names()[split_words(disease.name)]))


def is_alike(one: Disease, other: Disease) -> bool:
    """Return whether two diseases are one, of one family or share a gene, so that both could be the answer."""
    if find_group(one.id) == find_group(other.id) or derive_family(one.name) == derive_family(other.name):
        return True
    return not set(one.genes).isdisjoint(other.genes)


def write_stem(disease: Disease, shown: list[Phenotype], sex: str, rng: random.Random) -> str:
    """Write a vignette of a patient with the phenotypes `shown`, and the question for the diagnosis."""
    names = [decapitalize(phenotype.name) for phenotype in shown]
    patient = _describe_patient(disease, sex, rng)
    setting = rng.choice(_SETTINGS_ADULT if patient.is_adult else _SETTINGS_CHILD)
    findings = rng.choice(_FINDINGS).format(all=_join_names(names), first=names[0], rest=_join_names(names[1:]))
    closing = rng.choice(_CLOSINGS)
    return " ".join(part for part in (f"{patient.text} {setting}.", findings, closing, _ASK) if part)


def _join_names(names: list[str]) -> str:
    separator = "; " if any("," in name for name in names) else ", "
    if len(names) == 2:
        return " and ".join(names)
    return separator.join(names[:-1]) + f"{separator}and {names[-1]}"


def _describe_patient(disease: Disease, sex: str, rng: random.Random) -> _Patient:
    """Return the patient, of an age that fits the disease's onset. Example: _Patient("A 7-year-old girl", False)."""
    lowest, highest, unit = _AGES.get(rng.choice(disease.onset or ("",)), _UNKNOWN_AGE)
    age = rng.randint(lowest, highest)
    is_adult = unit == "year" and age >= 18
    noun = {("male", True): "man", ("female", True): "woman", ("male", False): "boy", ("female", False): "girl"}
    article = "An" if age in (8, 11, 18) else "A"
    return _Patient(f"{article} {age}-{unit}-old {noun[sex, is_adult]}", is_adult)
