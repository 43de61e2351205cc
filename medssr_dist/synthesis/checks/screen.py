"""`Screen`: all checks in order, cheap ones first. The first check that rejects a reply gives the reason.

1. The format (`parse`), then what the wording alone shows: length, item-writing flaws, grounding.
2. Decontamination, for many questions at once.
3. Checks that depend on the questions accepted before: exact duplicates and near-duplicates.

The options are shuffled by a recorded permutation, drawn from (random_seed, index): teachers write the correct answer
first too often, and a policy would learn the letter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from medssr_dist.config.synthesis import Checks
from medssr_dist.data.option_references import find_reference
from medssr_dist.data.records import Provenance, Question, Rejected
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.checks import flaws
from medssr_dist.synthesis.checks.decontamination import Decontaminator
from medssr_dist.synthesis.checks.grounding import Grounding
from medssr_dist.synthesis.checks.near_duplicates import HashSet, NearDuplicates, Sketches
from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection
from medssr_dist.synthesis.checks.wording import fold, hash_text, join_text

_BATCH = 256  # replies that are parsed and checked ahead

DraftCheck = Callable[[Draft, Provenance], Rejection | None]


class TeacherReply(NamedTuple):
    """The text of a reply, where it is from, and why it ended (see `read_reply`).

    Example: TeacherReply('{"question": ...}', Provenance(index=7, ...), "stop")
    """

    text: str
    provenance: Provenance
    finish_reason: str = ""


@dataclass(slots=True)
class _Case:
    """One reply during the checks."""

    reply: str
    provenance: Provenance
    draft: Draft | None
    rejection: Rejection | None
    text: str = ""  # stem and options, see `join_text`


class Screen:
    """Judges replies one after the other; an accepted question is remembered, so that no later one may repeat it.

    Args:
        random_seed: determines the order of the options.
        seeds: the seed questions; no question may repeat one.
        benchmarks: the items of every benchmark; no question may contain one.
        passage_text: passage id -> text, for grounding.
        synonyms: entity -> its other names, which give it away too.
    """

    def __init__(
        self,
        checks: Checks,
        random_seed: int,
        seeds: Sequence[Question],
        benchmarks: Sequence[Question],
        passage_text: Callable[[str], str],
        synonyms: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        self._random_seed = random_seed
        self._rejects_all_or_none = checks.all_or_none
        self._draft_checks = list(_select_checks(checks, seeds, passage_text, synonyms))
        self._decontaminator = Decontaminator(benchmarks, checks.decontamination) if checks.decontamination else None
        self._known = _KnownQuestions(checks.near_duplicate, [*seeds, *benchmarks])

    def judge(self, replies: Iterable[TeacherReply]) -> Iterator[Question | Rejected]:
        """Yield the question or the rejection of each reply, in order.

        A question counts as accepted when it is taken from the iterator. Up to 256 replies are checked ahead by the
        checks that do not depend on the questions accepted before.
        """
        replies = iter(replies)
        while batch := list(islice(replies, _BATCH)):
            yield from self._judge_batch([self._read(reply) for reply in batch])

    def _read(self, reply: TeacherReply) -> _Case:
        text, provenance, finish_reason = reply
        draft = read_reply(text, finish_reason)
        if isinstance(draft, Rejection):
            return _Case(text, provenance, None, draft)
        rejection = next(filter(None, (check(draft, provenance) for check in self._draft_checks)), None)
        return _Case(text, provenance, draft, rejection, join_text(*draft))

    def _judge_batch(self, cases: list[_Case]) -> Iterator[Question | Rejected]:
        self._decontaminate([case for case in cases if case.rejection is None])
        sound = [case for case in cases if case.rejection is None]
        fingerprints = self._known.compute_fingerprints([case.text for case in sound])
        for case in cases:
            if case.rejection is None:
                case.rejection = self._known.add_or_reject(next(fingerprints), case.provenance.index)
            yield _build_rejected(case) if case.rejection else self._build_question(case)

    def _decontaminate(self, cases: list[_Case]) -> None:
        if self._decontaminator is None or not cases:
            return
        for case, match in zip(cases, self._decontaminator.check([case.text for case in cases]), strict=True):
            if match:
                evidence = f"evaluation item {_name_question(match.item)} contains {match.coverage:.2f} of its 8-grams"
                case.rejection = Rejection("decontamination", evidence)

    def _build_question(self, case: _Case) -> Question:
        options = case.draft.options
        order = tuple(range(len(options)))
        if self._rejects_all_or_none or not find_reference(options):  # such options must keep their order
            order = _draw_permutation(self._random_seed, case.provenance.index, len(options))
        return Question.make(
            case.draft.stem,
            [options[place] for place in order],
            source="synthetic",
            rare=case.provenance.entity is not None,
            provenance=case.provenance.model_copy(update={"permutation": order}),
        )


class _Fingerprints(NamedTuple):
    """Fingerprints of some texts: the hash of each, and their sketches if near-duplicates are searched for."""

    exact: list[int]
    near: Sketches | None


class _KnownQuestions:
    """The questions that a new one must not repeat: seeds, benchmark items, and questions accepted before."""

    def __init__(self, near: float, references: Sequence[Question]):
        self._references = references
        self._accepted = array("I")  # request index of each
        self._exact = HashSet()
        self._near = NearDuplicates(near) if near else None
        batches = range(0, len(references), _BATCH)
        for start in ProgressBar(batches, desc="synthesize: reading seeds and benchmarks", delay=2, leave=False):
            part = references[start : start + _BATCH]
            self._add(self._hash([join_text(item.stem, item.options.values()) for item in part]))

    def compute_fingerprints(self, texts: list[str]) -> Iterator[_Fingerprints]:
        """Yield what `add_or_reject` needs for each text."""
        exact, near = self._hash(texts)
        for number, one in enumerate(exact):
            yield _Fingerprints([one], near and near.select(number))

    def add_or_reject(self, fingerprint: _Fingerprints, index: int) -> Rejection | None:
        """Remember the question of request `index`, or return which question it repeats."""
        if fingerprint.exact[0] in self._exact:
            return Rejection("duplicate", "a seed, a benchmark item or a question accepted before has the same words")
        found = self._near.find(fingerprint.near) if self._near else None
        if found:
            return Rejection(
                "near_duplicate", f"similarity about {found.similarity:.2f} to {self._describe(found.number)}"
            )
        self._add(fingerprint)
        self._accepted.append(index)
        return None

    def _hash(self, texts: list[str]) -> _Fingerprints:
        folded = [fold(text) for text in texts]
        return _Fingerprints([hash_text(text) for text in folded], self._near.sketch(folded) if self._near else None)

    def _add(self, fingerprints: _Fingerprints) -> None:
        for one in fingerprints.exact:
            self._exact.add(one)
        if self._near:
            self._near.add(fingerprints.near)

    def _describe(self, number: int) -> str:
        if number < len(self._references):
            return _name_question(self._references[number])
        return f"the question of request {self._accepted[number - len(self._references)]}"


def _select_checks(
    checks: Checks,
    seeds: Sequence[Question],
    passage_text: Callable[[str], str],
    synonyms: Mapping[str, Sequence[str]],
) -> Iterator[DraftCheck]:
    """Yield the checks that are on, in order."""
    if checks.min_words:
        yield partial(flaws.min_words, least=checks.min_words)
    if checks.max_words:
        yield partial(flaws.max_words, most=checks.max_words)
    for check in (flaws.all_or_none, flaws.negative_lead_in, flaws.missing_figure):
        if getattr(checks, check.__name__):
            yield check
    if checks.entity_given_away:
        yield partial(_check_entity, synonyms=synonyms)
    if checks.longest_option:
        yield partial(flaws.longest_option, times=checks.longest_option)
    if checks.repeated_key_word:
        yield flaws.RepeatedKeyWord(seeds)
    if checks.grounding:
        yield Grounding(checks.grounding, seeds, passage_text)


def _check_entity(draft: Draft, provenance: Provenance, synonyms: Mapping[str, Sequence[str]]) -> Rejection | None:
    return flaws.entity_given_away(draft, provenance, synonyms.get(provenance.entity or "", ()))


def _draw_permutation(random_seed: int, index: int, count: int) -> tuple[int, ...]:
    """Return a random order of `count` options, at most 10: place i shows option permutation[i]."""
    keys = blake2b(b"options:%d:%d" % (random_seed, index)).digest()
    return tuple(sorted(range(count), key=lambda option: keys[6 * option : 6 * option + 6]))


def _build_rejected(case: _Case) -> Rejected:
    return Rejected(
        index=case.provenance.index, reason=case.rejection.reason, detail=case.rejection.detail, reply=case.reply
    )


def _name_question(question: Question) -> str:
    return f"{question.source}:{question.source_id or question.id}"
