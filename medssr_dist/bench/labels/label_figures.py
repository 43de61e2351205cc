"""The figures of `medssr bench labels`: what each source of labels gives, and whether the promise holds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.bench.labels.vote_arms import VotedQuestion, list_shown_letters
from medssr_dist.config.voting import Voting
from medssr_dist.data.records import LETTERS, Label
from medssr_dist.data.wilson import Share, measure_share
from medssr_dist.voting.fixed_sequence import JudgedLabel, count_kept, list_thresholds, run_sequence
from medssr_dist.voting.label_rule import load_label_rule
from medssr_dist.voting.labels import label_by_rule
from medssr_dist.voting.tally import Tally

_REDRAWS = 2000
_LETTERS = LETTERS[:4]


@dataclass(frozen=True)
class LabelGain:
    """A difference of two shares on the same questions, with a 95% bootstrap interval over questions.

    Example: LabelGain(value=0.021, low=-0.004, high=0.046)
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SourceFigures:
    """What one source of labels gives.

    Attributes:
        arm, rule: how the votes were taken, and how they became labels.
        right: labels that are right, of all questions; a tie is not right.
        kept: labels with a share of at least the threshold, and the right ones among them.
        gain: in `right` over the majority of plain votes, on the same questions; None for this one itself.
        letters: share of the labels that each letter has.
        imbalance: half the sum of |share - share among the known answers|, over the labels.
        right_by_letter: share of right labels among the questions whose known answer is this letter.
    """

    arm: str
    rule: str
    right: Share
    kept: Share
    gain: LabelGain | None
    letters: dict[str, float]
    imbalance: float
    right_by_letter: dict[str, float]


@dataclass(frozen=True)
class LetterFigures:
    """The letters that the policy writes in one arm, whatever option stands there.

    Attributes:
        shown: share of the valid votes for each letter as written.
        own: the same for the question's own letters, after mapping back.
        imbalance_shown, imbalance_own: half the sum of |share - 1/4|.
        right: share of the valid votes that are right.
    """

    shown: dict[str, float]
    own: dict[str, float]
    imbalance_shown: float
    imbalance_own: float
    right: float


@dataclass(frozen=True)
class PromiseFigures:
    """What `voting.calibrate` promised on random slices of the questions, and what came of it on all others.

    Attributes:
        splits: random slices of `slice` questions; `certified` of them gave a threshold, the others were refused.
        holds: slices that were refused, or whose threshold has the precision wanted on the other questions. This is
            the share that `confidence` promises.
        holds_where_certified: the same among the slices that gave a threshold.
        mean_threshold, mean_kept, mean_precision: over the slices with a threshold; the last two on the others.
    """

    arm: str
    precision: float
    confidence: float
    splits: int
    slice: int
    certified: int
    holds: Share
    holds_where_certified: Share
    mean_threshold: float | None
    mean_kept: float | None
    mean_precision: float | None


def label_all(voted: Sequence[VotedQuestion], rule: str, threshold: float) -> list[Label]:
    """Return the labels that a rule gives."""
    named = load_label_rule(rule)
    voting = Voting.model_construct(
        samples=len(voted[0].votes), adaptive="never", rule=rule, threshold=threshold, confidence="valid"
    )
    return [
        label_by_rule(
            each.question,
            Tally.from_answers(vote.answer for vote in each.votes),
            named.share(each.question, list(each.votes)),
            voting,
            tokens=0,
            truncated=0,
            policy="",
            sampling="",
        )
        for each in voted
    ]


def measure_source(arm: str, rule: str, labels: Sequence[Label], plain: Sequence[Label] | None) -> SourceFigures:
    """Count one source of labels. `plain`: the labels that it is compared with, in the same order."""
    right = [label.answer == label.question.truth for label in labels]
    kept = [is_right for label, is_right in zip(labels, right, strict=True) if label.kept]
    answers = Counter(label.answer for label in labels if label.answer)
    truths = Counter(label.question.truth for label in labels)
    hits = Counter(label.question.truth for label, is_right in zip(labels, right, strict=True) if is_right)
    letters = {letter: answers[letter] / max(1, answers.total()) for letter in _LETTERS}
    return SourceFigures(
        arm=arm,
        rule=rule,
        right=measure_share(sum(right), len(right)),
        kept=measure_share(sum(kept), len(kept)),
        gain=_compare(right, [one.answer == one.question.truth for one in plain]) if plain else None,
        letters=letters,
        imbalance=sum(abs(letters[letter] - truths[letter] / len(labels)) for letter in _LETTERS) / 2,
        right_by_letter={letter: hits[letter] / max(1, truths[letter]) for letter in _LETTERS},
    )


def measure_letters(voted: Sequence[VotedQuestion]) -> LetterFigures:
    """Count the letters of all votes of an arm."""
    shown = list_shown_letters(voted)
    own = Counter(vote.answer for each in voted for vote in each.votes if vote.answer)
    right = sum(vote.answer == each.question.truth for each in voted for vote in each.votes)
    valid = max(1, own.total())
    shares = {
        name: {letter: counts[letter] / valid for letter in _LETTERS}
        for name, counts in (("shown", shown), ("own", own))
    }
    spread = {
        name: sum(abs(share - 1 / len(_LETTERS)) for share in found.values()) / 2 for name, found in shares.items()
    }
    return LetterFigures(shares["shown"], shares["own"], spread["shown"], spread["own"], right / valid)


def measure_promise(
    arm: str, labels: Sequence[Label], precision: float, confidence: float, splits: int, slice: int, lowest: float
) -> PromiseFigures:
    """Calibrate on random slices of `slice` labels, and see what the thresholds give on the others."""
    judged = [
        JudgedLabel(label.confidence_valid[0] if label.answer else None, label.answer == label.question.truth, False)
        for label in labels
    ]
    tried = list_thresholds(labels[0].requested, lowest)
    rng = random.Random(f"{arm}:{precision}:{confidence}")
    thresholds, rest = [], []
    for _ in range(splits):
        order = rng.sample(judged, len(judged))
        passed = run_sequence(order[:slice], tried, precision, confidence).passed
        if passed:
            thresholds.append(passed[-1].threshold)
            rest.append(count_kept(order[slice:], passed[-1].threshold))
    certified, kept = len(thresholds), sum(one.kept for one in rest)
    held = sum(one.right >= precision * one.kept for one in rest)
    return PromiseFigures(
        arm=arm,
        precision=precision,
        confidence=confidence,
        splits=splits,
        slice=slice,
        certified=certified,
        holds=measure_share(splits - certified + held, splits),
        holds_where_certified=measure_share(held, certified),
        mean_threshold=sum(thresholds) / certified if certified else None,
        mean_kept=kept / certified / (len(judged) - slice) if certified else None,
        mean_precision=sum(one.right for one in rest) / kept if kept else None,
    )


def _compare(new: Sequence[bool], old: Sequence[bool]) -> LabelGain:
    """Return the mean of new - old with its percentile bootstrap interval."""
    gains = [int(one) - int(other) for one, other in zip(new, old, strict=True)]
    rng = random.Random(len(gains))
    drawn = sorted(sum(rng.choices(gains, k=len(gains))) / len(gains) for _ in range(_REDRAWS))
    return LabelGain(
        sum(gains) / len(gains), drawn[round(0.025 * _REDRAWS)], drawn[min(_REDRAWS - 1, round(0.975 * _REDRAWS))]
    )
