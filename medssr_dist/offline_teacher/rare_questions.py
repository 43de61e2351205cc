"""Questions with injected knowledge: a vignette about the rare disease, composed from the passages about it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medssr_dist.knowledge.names import derive_family, split_words
from medssr_dist.offline_teacher.facts import Facts, read_facts
from medssr_dist.offline_teacher.patients import draw_patient
from medssr_dist.offline_teacher.reading import PromptParts

# Used only if passages and seeds name too few alternatives.
_SPARE_DISEASES = (
    "Marfan syndrome",
    "Wilson disease",
    "Fabry disease",
    "Gaucher disease",
    "Noonan syndrome",
    "Alport syndrome",
    "Tuberous sclerosis",
    "Cystic fibrosis",
)
_SPARE_GENES = ("FBN1", "CFTR", "ATP7B", "GLA", "PTPN11", "COL4A5", "TSC2", "DMD")
_MASK = "this condition"
_OTHER_SHARE = 0.3  # share of questions that do not ask for the diagnosis
_TOP_FINDINGS = 12  # passages list the most frequent first
_ALL_MODES = (
    "Autosomal dominant",
    "Autosomal recessive",
    "X-linked recessive",
    "X-linked dominant",
    "Mitochondrial",
)
_DIAGNOSIS_ASKS = (
    "Which of the following is the most likely diagnosis?",
    "Which of the following conditions best explains this presentation?",
    "What is the most likely underlying disorder?",
    "Which diagnosis should be considered first?",
    "Which of the following disorders accounts for this combination of findings?",
)
_VIGNETTES = (
    "{Patient} is referred for evaluation of {first}. Examination and further work-up show {rest}.",
    "At a specialty clinic, {patient} is assessed because of {first}. The medical record also lists {rest}.",
    "{Patient} comes to the physician with {first}. In the course of the evaluation, {rest} are documented as well.",
    "Two physicians discuss {patient} in whom {first} were noted early on. Since then, the "
    "list of problems has grown by {rest}.",
    "{Patient} is seen for a second opinion. {Possessive} documented findings are {first}. {Subject} is also found "
    "to have {rest}.",
)


@dataclass(frozen=True)
class Subject:
    """The disease that the question is about, its facts, and the facts of the other diseases in the passages."""

    name: str
    facts: Facts
    others: dict[str, Facts]
    seed_options: tuple[str, ...]


@dataclass(frozen=True)
class RareDraft:
    """A question before its options are shuffled.

    Example: RareDraft("A 30-year-old man ... most likely diagnosis?", "Alkaptonuria", ["Wilson disease", ...])
    """

    stem: str
    correct: str
    wrong: list[str]


def compose_rare(prompt: PromptParts, entity: str, rng: random.Random) -> RareDraft:
    """Compose a question about `entity`: mostly the diagnosis, else gene, inheritance or expected finding."""
    subject = _read_subject(prompt, entity)
    makers: list[Callable[[Subject, random.Random], RareDraft | None]] = [_ask_diagnosis]
    if rng.random() < _OTHER_SHARE:
        makers = rng.sample([_ask_gene, _ask_inheritance, _ask_expected_finding], 3) + makers
    for make in (*makers, _ask_inheritance, _ask_gene):
        draft = make(subject, rng)
        if draft:
            return draft
    return _ask_by_quote(subject, rng)


def _read_subject(prompt: PromptParts, entity: str) -> Subject:
    """Group the passages by disease. If none is about the entity, take the disease with the closest name."""
    by_family: dict[str, list[tuple[str, str]]] = {}
    for title, content in prompt.passages:
        by_family.setdefault(derive_family(title), []).append((title, content))
    name = entity
    if derive_family(name) not in by_family:
        name = next((title for title, content in prompt.passages if _share_name(title, name)), prompt.passages[0][0])
    own = by_family.pop(derive_family(name))
    others = {group[0][0]: read_facts(content for _, content in group) for group in by_family.values()}
    if name != entity and not _share_name(name, entity):
        others = {entity: read_facts([]), **others}
    options = tuple(option for seed in prompt.seeds for option in seed.options if seed.asks_diagnosis)
    return Subject(name, read_facts(content for _, content in own), others, options)


def _share_name(one: str, other: str) -> bool:
    """Return whether all words of one name are in the other."""
    left, right = set(split_words(one)), set(split_words(other))
    return left <= right or right <= left


def _ask_diagnosis(subject: Subject, rng: random.Random) -> RareDraft | None:
    findings = _pick_findings(subject, rng)
    if not findings:
        return None
    stem = write_diagnosis_stem(subject.name, subject.facts, findings, rng)
    return RareDraft(stem, subject.name, _pick_other_diseases(subject, findings, rng))


def write_diagnosis_stem(name: str, facts: Facts, findings: Sequence[str], rng: random.Random) -> str:
    """Write a vignette of a patient with the disease `name` who shows `findings`, and a question for the diagnosis."""
    case = [_write_vignette(facts, findings, rng), *_write_clues(name, facts, rng)]
    return " ".join([*case, rng.choice(_DIAGNOSIS_ASKS)])


def _ask_gene(subject: Subject, rng: random.Random) -> RareDraft | None:
    genes, findings = subject.facts.genes, _pick_findings(subject, rng)
    if not genes or not findings:
        return None
    pool = [gene for facts in subject.others.values() for gene in facts.genes] + rng.sample(_SPARE_GENES, 4)
    ask = f"The diagnosis of {subject.name} is made. A variant in which of the following genes is the likely cause?"
    wrong = [gene for gene in dict.fromkeys(pool) if gene not in genes]
    return RareDraft(f"{_write_vignette(subject.facts, findings, rng)} {ask}", genes[0], wrong[:4])


def _ask_inheritance(subject: Subject, rng: random.Random) -> RareDraft | None:
    mode = _find_single_mode(subject.name, subject.facts)
    if mode is None:
        return None
    wrong = [other for other in _ALL_MODES if other != mode and not (mode == "X-linked" and other.startswith(mode))]
    findings = _pick_findings(subject, rng)
    patient = draw_patient(rng, subject.facts.onset, subject.facts.modes)
    opening = (
        f"{_write_vignette(subject.facts, findings, rng)} The diagnosis of {subject.name} is made."
        if findings
        else f"The parents of {patient.article_noun} with newly diagnosed {subject.name} come for genetic counseling."
    )
    return RareDraft(f"{opening} Which pattern of inheritance is typical of this disorder?", mode, wrong)


def _ask_expected_finding(subject: Subject, rng: random.Random) -> RareDraft | None:
    findings = _pick_findings(subject, rng)
    stated = subject.facts.text.casefold()
    pool = [finding for facts in subject.others.values() for finding in facts.findings]
    wrong = [finding for finding in dict.fromkeys(pool) if finding.casefold() not in stated]
    if len(findings) < 4 or len(wrong) < 3:
        return None
    *shown, correct = findings
    ask = f"The diagnosis of {subject.name} is made. Which of the following further findings belongs to this disorder?"
    return RareDraft(
        f"{_write_vignette(subject.facts, shown, rng)} {ask}", correct, rng.sample(wrong, min(4, len(wrong)))
    )


def _ask_by_quote(subject: Subject, rng: random.Random) -> RareDraft:
    """Quote a sentence of a passage with the name masked; used if no other question can be composed."""
    masked = re.sub(re.escape(subject.name), _MASK, subject.facts.text, flags=re.IGNORECASE)
    masked = re.sub(r"\s*\([^)]*\)", "", masked)
    sentences = [part for part in re.split(r"(?<=[.?!])\s+", masked) if 8 <= len(part.split()) <= 40]
    ordered = sorted(sentences or [masked[:200]], key=lambda part: (part.endswith("?"), _MASK not in part.casefold()))
    quoted = ordered[0][:1].upper() + ordered[0][1:]
    patient = draw_patient(rng, subject.facts.onset, subject.facts.modes)
    stem = (
        f"The family of {patient.article_noun} asks about a rare disorder that a specialist has mentioned. A reference "
        f'text says of it: "{quoted}" {rng.choice(("Which disorder is meant?", "Which disorder does it describe?"))}'
    )
    return RareDraft(stem, subject.name, _pick_other_diseases(subject, [], rng))


def _pick_findings(subject: Subject, rng: random.Random) -> list[str]:
    """Pick 4-6 findings, specific ones first, none of which gives the name away; [] if the passages state too few."""
    name = {word for word in split_words(subject.name) if len(word) > 3}
    clean = [finding for finding in subject.facts.findings if not name & set(split_words(finding))]
    if len(clean) < 3:  # a name such as 'distal myopathy' contains words of its findings
        clean = [finding for finding in subject.facts.findings if not _share_name(finding, subject.name)]
    if len(clean) < 3:
        return []
    elsewhere = " ".join(facts.text for facts in subject.others.values()).casefold()
    top = clean[:_TOP_FINDINGS]
    specific = [finding for finding in top if finding.casefold() not in elsewhere]
    count = min(rng.randint(4, 6), len(top))
    first = rng.sample(specific, min(len(specific), count - 1))
    others = [finding for finding in top if finding not in first]
    return first + rng.sample(others, count - len(first))


def _write_vignette(facts: Facts, findings: Sequence[str], rng: random.Random) -> str:
    patient = draw_patient(rng, facts.onset, facts.modes)
    return rng.choice(_VIGNETTES).format(
        Patient=patient.article_noun.capitalize(),
        patient=patient.article_noun,
        Subject=patient.subject,
        Possessive=patient.possessive,
        first=_enumerate(findings[:2]),
        rest=_enumerate(findings[2:]),
    )


def _write_clues(name: str, facts: Facts, rng: random.Random) -> Iterable[str]:
    mode = _find_single_mode(name, facts)
    if mode and rng.random() < 0.4:
        yield f"The family history fits {mode if mode.startswith('X-') else mode.lower()} inheritance."
    if facts.genes and facts.genes[0] not in name and rng.random() < 0.25:
        yield f"Sequencing reports a pathogenic variant in {facts.genes[0]}."


def _pick_other_diseases(subject: Subject, findings: list[str], rng: random.Random) -> list[str]:
    """Pick 3 or 4 wrong diseases from the other passages, the seeds' options and the spares, of distinct families.

    A disease whose passage states every finding shown would be correct too, so it is left out.
    """
    near = [
        title
        for title, facts in subject.others.items()
        if not findings or not all(finding.casefold() in facts.text.casefold() for finding in findings)
    ]
    pool = near + rng.sample(subject.seed_options, len(subject.seed_options)) + rng.sample(_SPARE_DISEASES, 8)
    chosen: dict[str, str] = {}
    for title in pool:
        if not _share_name(title, subject.name) and derive_family(title) != derive_family(subject.name):
            chosen.setdefault(derive_family(title), title)
    return list(chosen.values())[: rng.choice((3, 4))]


def _find_single_mode(name: str, facts: Facts) -> str | None:
    """Return the mode of inheritance if the passages state exactly one and the name does not contain it."""
    modes = facts.modes
    return modes[0] if len(modes) == 1 and modes[0].casefold() not in name.casefold() else None


def _enumerate(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
