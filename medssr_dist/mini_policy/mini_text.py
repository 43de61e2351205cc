"""The text that the mini policy is trained on, drawn without end: passages, look-ups, answered vignettes.

A passage names findings of a disease, before or after its name. A look-up lists options, then states the letter of one:
so the policy learns early to find the letter of a name. A vignette is a question as the pipeline asks it.
The reply is one short line of reasoning (some of the findings that decide, then the disease) and "The answer is X".
Which findings the line names, and in which words, is drawn at random. Later in the training a share of the replies
concludes a wrong option from findings that fit it. So several replies of the policy to one question differ, and their
majority is better than one of them.

Common diseases are drawn more often than rare ones (TextMix), both as the answer and as distractors. So an option's
rarity says nothing about whether it is the answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from medssr_dist.data.records import LETTERS, Question
from medssr_dist.knowledge.hpo import Disease
from medssr_dist.knowledge.mini_world import TEXT, MiniPatient, MiniWorld
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.vignettes import list_frequent_phenotypes, write_stem
from medssr_dist.mini_policy.wordings import (
    REASONS,
    write_other_stem,
    write_passage,
    write_stem_in_any_wording,
)

# Our choices, found by a few trials.
PASSAGE_SHARE, LOOKUP_SHARE = 0.35, 0.25
OTHER_WORDING_SHARE = 0.5
_CANDIDATES = (4, 12, 60)  # the more diseases are compared as distractors, the nearer they are


@dataclass(frozen=True)
class TextMix:
    """What is drawn. Example: TextMix(only_lookups=True), for the first steps of the training

    Attributes:
        all_wordings: vignettes are also written as the offline teacher writes them.
        common_to_rare: how many times as often as a rare disease a common one is drawn.
        five_options: share of the vignettes with five options; the others have four.
        errors: share of the vignettes whose reply concludes one of the wrong options.
    """

    only_lookups: bool = False
    all_wordings: bool = False
    common_to_rare: int = 5
    five_options: float = 0.2
    errors: float = 0.0


LOOKUPS, PLAIN = TextMix(only_lookups=True), TextMix()
VARIED = TextMix(all_wordings=True, common_to_rare=2, five_options=0.35, errors=0.6)


@dataclass(frozen=True)
class Document:
    """One piece of text. Vignettes have a question and a patient; of look-ups, only the letters are learned.

    Example: Document(None, "Cough is a feature of ...", "ORPHA:1")
    """

    question: Question | None
    text: str
    disease: str
    patient: MiniPatient | None = None
    letters_only: bool = False


class TextState(NamedTuple):
    """How many documents were drawn, and the state of the random numbers."""

    passages: int
    lookups: int
    vignettes: int
    random: tuple[Any, ...]


class MiniText:
    """Draws documents about the diseases of a world, and counts them."""

    def __init__(self, world: MiniWorld, random_seed: int):
        self.passages = self.lookups = self.vignettes = 0
        self._world = world
        self._rng = random.Random(random_seed)
        self._is_rare = [world.is_rare(disease) for disease in world.diseases]

    def draw(self, mix: TextMix = PLAIN) -> Document:
        """Draw the next document."""
        disease = self._draw_diseases(1, mix)[0]
        kind = PASSAGE_SHARE if mix.only_lookups else self._rng.random()
        if kind < PASSAGE_SHARE:
            self.passages += 1
            return self._draw_passage(disease)
        if kind < PASSAGE_SHARE + LOOKUP_SHARE:
            self.lookups += 1
            return self._draw_lookup(disease, mix)
        document = None
        while document is None:
            document = self._draw_vignette(disease, mix)
        self.vignettes += 1
        return document

    def get_state(self) -> TextState:
        """Return what a checkpoint needs to go on with the next document."""
        return TextState(self.passages, self.lookups, self.vignettes, self._rng.getstate())

    def set_state(self, state: TextState) -> None:
        """Go on where `get_state` was called."""
        self.passages, self.lookups, self.vignettes = state.passages, state.lookups, state.vignettes
        self._rng.setstate(state.random)

    def _draw_diseases(self, count: int, mix: TextMix) -> list[Disease]:
        weights = [1 if is_rare else mix.common_to_rare for is_rare in self._is_rare]
        return self._rng.choices(self._world.diseases, weights, k=count)

    def _draw_passage(self, disease: Disease) -> Document:
        findings = [decapitalize(one.name) for one in list_frequent_phenotypes(disease)]
        self._rng.shuffle(findings)
        findings = findings[: self._rng.choice((1, 2, 2, 3, 3, 4, 8))]
        return Document(None, write_passage(disease, findings, self._rng), disease.id)

    def _draw_lookup(self, disease: Disease, mix: TextMix) -> Document:
        others: set[str] = set()
        while not others:
            others = {other.name for other in self._draw_diseases(self._rng.randint(1, 4), mix)} - {disease.name}
        options = [disease.name, *sorted(others)]
        self._rng.shuffle(options)
        lines = [f"{letter}. {name}" for letter, name in zip(LETTERS, options, strict=False)]
        letter = LETTERS[options.index(disease.name)]
        text = "\n".join([*lines, "", f"This is {disease.name}. The answer is {letter}."])
        return Document(None, text, disease.id, letters_only=True)

    def _draw_vignette(self, disease: Disease, mix: TextMix) -> Document | None:
        rng = self._rng
        patient = self._world.draw_patient(disease, TEXT, rng)
        count = 4 if rng.random() < mix.five_options else 3
        candidates = list({other.id: other for other in self._draw_diseases(rng.choice(_CANDIDATES), mix)}.values())
        others = self._world.draw_distractors(patient, candidates, count, rng)
        if len(others) < count:
            return None
        options = [disease.name, *(other.name for other in others)]
        rng.shuffle(options)
        write = write_stem_in_any_wording
        if not mix.all_wordings:
            write = write_other_stem if rng.random() < OTHER_WORDING_SHARE else write_stem
        stem = write(disease, list(patient.shown), patient.sex, rng)
        letter = LETTERS[options.index(disease.name)]
        question = Question.make(stem, options, source=TEXT, truth=letter)
        concluded, rivals = disease, others
        if mix.errors and rng.random() < mix.errors:
            concluded = rng.choice(others)
            rivals = [other for other in (disease, *others) if other.id != concluded.id]
        reply = self._write_reply(patient, concluded, rivals, LETTERS[options.index(concluded.name)])
        return Document(question, reply, disease.id, patient)

    def _write_reply(self, patient: MiniPatient, concluded: Disease, rivals: list[Disease], letter: str) -> str:
        """Write the line of reasoning: one to three findings for `concluded` and against its rivals, in random order.

        Findings that `concluded` lacks too are named last.
        """
        against = self._world.list_lacked(patient, rivals)
        missing = self._world.list_lacked(patient, [concluded])
        ranked = sorted(
            zip(against, missing, patient.shown, strict=True),
            key=lambda each: each[1] * 2 * len(rivals) - each[0] - self._rng.random() * len(rivals),
        )
        named = [decapitalize(one.name) for *_, one in ranked[: self._rng.choice((1, 2, 2, 3))]]
        joined = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
        reason = self._rng.choice(REASONS).format(findings=joined, disease=concluded.name)
        return f"{reason[:1].upper()}{reason[1:]} The answer is {letter}."
