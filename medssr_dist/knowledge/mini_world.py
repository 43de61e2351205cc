"""The diseases that the mini policy is made for, and the patients that its text and its question sets are made of.

The world has common and rare diseases of equal number. All of them are rare diseases of Orphanet; a hash chose which of
them count as common. The groups differ in one thing only: the mini policy's text describes common ones often and rare
ones seldom. No disease of hpo:evaluation is in the world.

A patient is a disease with the set of findings that are shown. A hash of both chooses the patient's use: the text of
the mini policy, or one of MINI_SETS. So the same diseases occur in all of them, but the same patient never does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from medssr_dist.data.jsonl import read_text
from medssr_dist.data.records import LETTERS, Question, hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.hpo import Disease, Phenotype
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.rare_diseases import load_rare_diseases
from medssr_dist.knowledge.splits import is_evaluation
from medssr_dist.knowledge.vignettes import (
    DEFAULT_QUESTIONS,
    MIN_ABSENT,
    OPTIONS,
    choose_phenotypes,
    choose_sex,
    find_matching,
    find_organ_system,
    is_alike,
    list_frequent_phenotypes,
    write_stem,
)

DISEASES_PER_GROUP = 80
COMMON, RARE = "common", "rare"
LISTS = {group: Path(__file__).parent / "data" / f"mini_{group}.tsv" for group in (COMMON, RARE)}
MINI_LISTS = {f"hpo:mini-{group}": file for group, file in LISTS.items()}  # values of knowledge.entities_file
# Upper bound of each use, in percent of the hash range of patients.
TEXT, SEEDS, SUPERVISED, CHECK, EVALUATION = (
    *("hpo:mini-text", "hpo:mini-seeds"),
    *("hpo:mini-supervised", "hpo:mini-check", "hpo:mini-evaluation"),
)
_USES = ((TEXT, 60), (SEEDS, 67), (SUPERVISED, 76), (CHECK, 83), (EVALUATION, 100))
MINI_SETS = (SEEDS, SUPERVISED, CHECK, EVALUATION)
_WITH_RARE = (CHECK, EVALUATION)
# Our choice: fewer findings make too few different patients; longer names cost tokens in every option.
_MIN_FINDINGS, _MAX_NAME = 9, 44
_TRIES = 2000


@dataclass(frozen=True)
class MiniPatient:
    """A disease with the findings of one patient. Example: MiniPatient(Disease(...), (Phenotype(...), ...), "male")"""

    disease: Disease
    shown: tuple[Phenotype, ...]
    sex: str

    @property
    def key(self) -> str:
        """Disease and findings as a text: the id of the disease, and a hash."""
        return f"{self.disease.id}/{hash_content(sorted(phenotype.id for phenotype in self.shown), 8)}"

    @property
    def use(self) -> str:
        """The set that alone may show this patient: TEXT or one of MINI_SETS."""
        found = [self.disease.id, sorted(phenotype.id for phenotype in self.shown)]
        bucket = int(hash_content(found, 8), 16) % 100
        return next(use for use, bound in _USES if bucket < bound)


@dataclass(frozen=True)
class MiniCase:
    """A question and the patient that it is about. Example: MiniCase(MiniPatient(...), Question(...))"""

    patient: MiniPatient
    question: Question


class MiniWorld:
    """The common and the rare diseases, and for each pair of a disease and a finding whether the disease lacks it."""

    def __init__(self, common: Sequence[Disease], rare: Sequence[Disease]):
        self.common, self.rare = tuple(common), tuple(rare)
        self.diseases = self.common + self.rare
        self._rows = {disease.id: row for row, disease in enumerate(self.diseases)}
        findings = dict.fromkeys(one.id for disease in self.diseases for one in list_frequent_phenotypes(disease))
        self._columns = {finding: column for column, finding in enumerate(findings)}
        matching = [find_matching(disease) for disease in self.diseases]
        self._lacks = np.array([[one not in found for one in findings] for found in matching], dtype=np.int16)
        self._alike = np.array([[is_alike(one, other) for other in self.diseases] for one in self.diseases])

    def is_rare(self, disease: Disease) -> bool:
        """Return whether the mini policy's text describes `disease` seldom."""
        return self._rows[disease.id] >= len(self.common)

    def draw_patient(self, disease: Disease, use: str, rng: random.Random) -> MiniPatient:
        """Draw a patient with `disease` for `use`. Raises InputError if none is found."""
        for _ in range(_TRIES):
            sex = choose_sex(disease, rng)
            patient = MiniPatient(disease, tuple(choose_phenotypes(disease, sex, rng)), sex)
            if len(patient.shown) >= 3 and patient.use == use:
                return patient
        raise InputError(f"{disease.id} has no patient for {use} in {_TRIES} draws; leave the disease out of the world")

    def draw_distractors(
        self, patient: MiniPatient, candidates: Sequence[Disease], count: int, rng: random.Random
    ) -> list[Disease]:
        """Return `count` of `candidates`, those that share most findings first; fewer if not so many fit.

        Each lacks at least MIN_ABSENT of the patient's findings, and no two options are alike.
        """
        columns = [self._columns[one.id] for one in patient.shown]
        rows = [self._rows[other.id] for other in candidates]
        absent = self._lacks[np.ix_(rows, columns)].sum(axis=1)
        chosen = [self._rows[patient.disease.id]]
        for place in sorted(range(len(rows)), key=lambda place: (absent[place], rng.random())):
            if absent[place] >= MIN_ABSENT and not self._alike[rows[place], chosen].any():
                chosen.append(rows[place])
            if len(chosen) == count + 1:
                break
        return [self.diseases[row] for row in chosen[1:]]

    def list_lacked(self, patient: MiniPatient, others: Sequence[Disease]) -> list[int]:
        """Return, for each finding of the patient, how many of `others` lack it."""
        columns = [self._columns[one.id] for one in patient.shown]
        return [int(count) for count in self._lacks[np.ix_([self._rows[o.id] for o in others], columns)].sum(axis=0)]


def choose_mini_diseases() -> MiniWorld:
    """Choose the diseases for a new pair of lists: those with enough findings and a short name, none for evaluation.

    A hash of the id puts a disease into its group; each group gets the first DISEASES_PER_GROUP.
    """
    chosen: dict[str, list[Disease]] = {COMMON: [], RARE: []}
    seen: set[str] = set()
    for disease in load_rare_diseases():
        group = chosen[COMMON if int(hash_content([disease.id, "mini"], 8), 16) % 2 else RARE]
        fits = len(disease.name) <= _MAX_NAME and len(list_frequent_phenotypes(disease)) >= _MIN_FINDINGS
        is_new = find_group(disease.id) not in seen and not is_evaluation(disease)
        if fits and is_new and len(group) < DISEASES_PER_GROUP:
            group.append(disease)
            seen.add(find_group(disease.id))
    return MiniWorld(*(sorted(group, key=lambda disease: disease.id) for group in chosen.values()))


@cache
def load_mini_world() -> MiniWorld:
    """Return the world of the two lists in data/."""
    known = {disease.id: disease for disease in load_rare_diseases()}
    ids = {group: [line.split("\t")[1] for line in read_text(file).splitlines()[1:]] for group, file in LISTS.items()}
    return MiniWorld(*([known[one] for one in ids[group]] for group in (COMMON, RARE)))


def make_mini_questions(name: str, limit: int = 0, random_seed: int = 0) -> list[Question]:
    """Make the first `limit` (0 = DEFAULT_QUESTIONS) questions of one of MINI_SETS; `rare` marks the rare diseases.

    Seeds and supervised set are about common diseases; check and evaluation are about common and rare ones in turn.

    Raises:
        InputError: there are not so many different patients.
    """
    return [case.question for case in make_mini_cases(name, limit, random_seed)]


def make_mini_cases(name: str, limit: int = 0, random_seed: int = 0) -> list[MiniCase]:
    """Make the questions of `make_mini_questions`, each with its patient. Raises InputError as it does."""
    world, rng = load_mini_world(), random.Random(f"{random_seed}:{name}")
    cases: dict[str, MiniCase] = {}
    wanted = limit or DEFAULT_QUESTIONS
    while len(cases) < wanted:
        before = len(cases)
        for disease in _shuffle_in_turn(world, name, rng):
            patient = world.draw_patient(disease, name, rng)
            question = make_mini_question(world, patient, name, rng)
            if question is not None and len(cases) < wanted:
                cases.setdefault(patient.key, MiniCase(patient, question))
        if len(cases) == before:
            raise InputError(f"{name} has {before} questions, but its limit is {wanted}; lower the limit")
    return list(cases.values())


def _shuffle_in_turn(world: MiniWorld, name: str, rng: random.Random) -> list[Disease]:
    common, rare = list(world.common), list(world.rare)
    rng.shuffle(common)
    rng.shuffle(rare)
    if name not in _WITH_RARE:
        return common
    return [disease for pair in zip(common, rare, strict=True) for disease in pair]


def make_mini_question(world: MiniWorld, patient: MiniPatient, name: str, rng: random.Random) -> Question | None:
    """Return a question about `patient` with OPTIONS options; None if too few diseases fit as distractors."""
    distractors = world.draw_distractors(patient, rng.sample(world.diseases, 60), OPTIONS - 1, rng)
    if len(distractors) < OPTIONS - 1:
        return None
    options = [patient.disease.name, *(other.name for other in distractors)]
    rng.shuffle(options)
    return Question.make(
        write_stem(patient.disease, list(patient.shown), patient.sex, rng),
        options,
        source=name,
        source_id=patient.key,
        truth=LETTERS[options.index(patient.disease.name)],
        rare=world.is_rare(patient.disease),
        topic=find_organ_system(list(patient.shown)),
    )
