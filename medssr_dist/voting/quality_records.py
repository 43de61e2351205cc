"""The records of voting/quality.json and voting/summary.json; see `quality.py` for how they are measured.

All shares are between 0 and 1, and None where there is nothing to share. Least and most are the bounds of a figure that
votes not taken leave open; they are equal where it is known.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from medssr_dist.data.label_certificate import LabelCertificate
from medssr_dist.data.wilson import Share


class QualityRecord(BaseModel):
    """Base class: immutable; written with the field names as keys."""

    model_config = ConfigDict(frozen=True)


class CountBounds(QualityRecord):
    """A number of labels. Example: CountBounds(least=5, most=6)"""

    least: int
    most: int


class ShareBounds(QualityRecord):
    """A share of the questions. Example: ShareBounds(least=0.5, most=0.6)"""

    least: float | None
    most: float | None


class PrecisionBounds(QualityRecord):
    """The share of right answers among the kept labels with a known truth.

    Example: 3 right of 4 labels that are kept, and one label left open that may be kept with a wrong answer or not be
    kept: PrecisionBounds(least=3/5, most=3/4, low=0.23, high=0.95, known=4, open=1)

    Attributes:
        least: if every open label that may be wrong is kept, and no other open one.
        most: if every open label that may be right is kept, and no other open one.
        low: lower bound of the 95% Wilson interval of `least`.
        high: upper bound of the 95% Wilson interval of `most`.
        known: labels with a truth that are kept for certain.
        open: labels with a truth that may be kept.
    """

    least: float
    most: float
    low: float
    high: float
    known: int
    open: int


class CurvePoint(QualityRecord):
    """What the vote would give at another threshold.

    Example: CurvePoint(threshold=0.5, open=1, kept=CountBounds(least=5, most=6),
    kept_share=ShareBounds(least=5/9, most=6/9), precision=None)

    Attributes:
        open: labels of which it is not known whether they would be kept.
        precision: None where no label with a truth can be kept.
    """

    threshold: float
    open: int
    kept: CountBounds
    kept_share: ShareBounds
    precision: PrecisionBounds | None


class KindQuality(QualityRecord):
    """The labels of the questions on rare diseases, or of the others.

    Example: KindQuality(questions=2, kept=2, precision=measure_share(1, 2), curve=())

    Attributes:
        precision: right answers among the kept labels with a truth.
    """

    questions: int
    kept: int
    precision: Share
    curve: tuple[CurvePoint, ...]


class QualityByKind(QualityRecord):
    """Rare diseases and the others. Example: QualityByKind(rare=rare, common=common), each a KindQuality"""

    rare: KindQuality
    common: KindQuality


class VoteRates(QualityRecord):
    """Example: of 36 votes requested 3 were saved; of the 30 taken 5 were invalid and 1 was cut:
    VoteRates(saved=3/36, invalid=5/30, truncated=1/30)
    """

    saved: float | None
    invalid: float | None
    truncated: float | None


class Histogram(QualityRecord):
    """Questions by the confidence of their label. A value on an inner edge belongs to the bin above it.

    Example: Histogram(edges=(0.0, 0.5, 1.0), no_winner=(1, 0), exact=(0, 2), least=(1, 0), most=(0, 1))

    Attributes:
        edges: one more than there are bins.
        no_winner: ties and questions without a valid vote; never kept.
        exact: labels whose confidence is known.
        least: labels of which only an interval is known, by its lower end.
        most: the same labels by its upper end.
    """

    edges: tuple[float, ...]
    no_winner: tuple[int, ...]
    exact: tuple[int, ...]
    least: tuple[int, ...]
    most: tuple[int, ...]


class Histograms(QualityRecord):
    """By both denominators. Example: Histograms(requested=of_requested, valid=of_valid), each a Histogram"""

    requested: Histogram
    valid: Histogram


class LetterQuality(QualityRecord):
    """The votes for one letter.

    Example: LetterQuality(votes=11, share=0.73, even=0.37, kept=3, share_known=0.82, truth=0.73, right=0.88)

    Attributes:
        votes: valid votes for the letter.
        share: of all valid votes.
        even: the share that it would have if no letter were preferred.
        kept: kept labels with this answer.
        share_known: its share of the valid votes on questions with a truth.
        truth: the share that it would have there if all votes were right.
        right: right votes among those on questions whose truth is this letter.
    """

    votes: int
    share: float | None
    even: float | None
    kept: int
    share_known: float | None
    truth: float | None
    right: float | None


class LetterBias(QualityRecord):
    """Whether the policy prefers certain letters, independently of the options' texts.

    Example: LetterBias(by_letter={"A": letter_a, "B": letter_b}, imbalance=0.1, right=0.7, right_by_letter=0.6)

    Attributes:
        imbalance: half the sum of |share - even|: the share of the votes that would have to name another letter.
        right: share of right votes, on questions with a truth.
        right_by_letter: mean of the letters' `right`; preferring the most frequent letter does not raise it.
    """

    by_letter: dict[str, LetterQuality]
    imbalance: float | None
    right: float | None
    right_by_letter: float | None


class LabelQuality(QualityRecord):
    """The content of quality.json: the settings of the vote, counts, and what the threshold can be chosen by.

    Example: quality.json of a vote on 9 questions begins with samples=4, threshold=0.75, confidence="requested",
    adaptive="lossless", questions=9, labeled=5, ties=1, all_invalid=1, rejected=1, quarantined=1, kept=4, ...

    Attributes:
        questions: number of labels; the five outcomes sum to it.
        with_truth: questions with a known answer.
        truth_known: of the kept labels, those with a known answer.
        agree_with_truth: of these, the right ones.
        precision: the share of right ones.
        chance: what it would be if each label were drawn evenly from the options of its question.
        votes: votes taken, of `votes_requested`; `votes_saved` were not needed.
        votes_taken: number of votes -> questions for which so many were taken.
        tokens: generated in the votes taken.
        curve: a point for each threshold, ascending.
        threshold: the lower one where rare and common questions have thresholds of their own (`certificate`).
        certificate: what `voting.calibrate` promises of the kept labels; None = no threshold was calibrated.
    """

    samples: int
    threshold: float
    confidence: str
    adaptive: str
    questions: int
    labeled: int
    ties: int
    all_invalid: int
    rejected: int
    quarantined: int
    kept: int
    kept_share: float | None
    with_truth: int
    truth_known: int
    agree_with_truth: int
    precision: Share
    chance: float | None = None
    by_kind: QualityByKind
    votes: int
    votes_requested: int
    votes_saved: int
    invalid_votes: int
    truncated_votes: int
    rates: VoteRates
    votes_taken: dict[int, int]
    tokens: int
    histogram: Histograms
    curve: tuple[CurvePoint, ...]
    letters: LetterBias
    certificate: LabelCertificate | None = None


class VoteSummary(QualityRecord):
    """The content of voting/summary.json.

    Example: VoteSummary(votes_taken_now=24, seconds=1.5, tokens=120, quality=quality)

    Attributes:
        votes_taken_now: votes taken by the last attempt.
        seconds: duration of the last attempt.
        tokens: generated in all votes taken, over all attempts.
        kept_wanted: `voting.kept` when the vote ended; 0 = as many as there were.
    """

    votes_taken_now: int
    seconds: float
    tokens: int
    quality: LabelQuality
    kept_wanted: int = 0
