"""The quality of a vote's labels: what a user needs to choose the threshold t, in one pass over the labels.

Adaptive voting does not take all votes. So of some labels only an interval of the confidence is known, and at another
threshold than the run's own it may be open whether they would be kept. Nothing is estimated there: every figure that
depends on it is given as its least and its greatest possible value, which are equal where all is known. `rejected`
labels (voting.adaptive=kept) have no winner: at lower thresholds each may be a tie, right or wrong. Under
voting.adaptive=statistical, outcome and answer count as they were decided.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from medssr_dist.config.voting import Voting
from medssr_dist.data.checksums import LineChecker
from medssr_dist.data.jsonl import open_bytes, write_json
from medssr_dist.data.label_certificate import KindThresholds, LabelCertificate
from medssr_dist.data.records import LETTERS, Label, Question
from medssr_dist.data.wilson import measure_share, wilson_interval
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.voting.quality_records import (
    CountBounds,
    CurvePoint,
    Histogram,
    Histograms,
    KindQuality,
    LabelQuality,
    LetterBias,
    LetterQuality,
    PrecisionBounds,
    QualityByKind,
    ShareBounds,
    VoteRates,
)

Truth = Callable[[Question], str | None]
AnswerKind = Literal["right", "wrong", "either", "unknown"]  # either: it has no winner yet; unknown: there is no truth
_MAX_STEPS = 50  # thresholds, and bins of the histogram, where K is larger
_VALID_STEPS = 20  # the same for winner's votes / valid votes, which are not multiples of 1 / K


def write_quality(
    folder: Path, labels_file: Path, voting: Voting, truth: Truth, certificate: LabelCertificate | None = None
) -> LabelQuality:
    """Measure the labels of `labels_file` and write quality.json and quality.png into `folder`.

    Raises:
        InputError: a line is not a label, or the disk is full.
    """
    from medssr_dist.voting.quality_plots import plot_quality

    size = labels_file.stat().st_size
    with ProgressBar(total=size, desc="quality of labels", unit="B", unit_scale=True, delay=2) as bar:
        quality = measure_quality(read_labels(labels_file, bar.update), voting, truth, certificate)
    write_json(VotingPaths(folder).quality, quality.model_dump(mode="json"))
    plot_quality(quality, VotingPaths(folder).quality_plot)
    return quality


def read_labels(labels_file: Path, on_bytes: Callable[[int], object] = lambda size: None) -> Iterator[Label]:
    """Yield the labels of a file. `on_bytes` gets the size of each line. Raises InputError for a line that is none."""
    with open_bytes(labels_file) as lines:
        checker = LineChecker(labels_file)
        for number, line in enumerate(lines, start=1):
            try:
                yield Label.model_validate_json(checker.open(line) or b"")
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise InputError(f"{labels_file} line {number} is not a label of this version ({reason})") from None
            on_bytes(len(line))


def measure_quality(
    labels: Iterable[Label], voting: Voting, truth: Truth, certificate: LabelCertificate | None = None
) -> LabelQuality:
    """Return the quality of `labels`, in memory that does not grow with their number.

    Args:
        voting: the settings that the labels were decided with.
        truth: returns the known answer of a question, or None; it is only counted, never used as a label.
        certificate: of the thresholds that the labels were decided with; None = `voting.threshold`.
    """
    counts = _LabelCounts(voting, certificate)
    for label in labels:
        counts.add(label, truth(label.question))
    return counts.summarize()


class _LabelCase(NamedTuple):
    """What the curve needs of a label that has, or may have, a winner. Labels with equal cases are counted together."""

    rare: bool
    kept_below: int  # it is kept at the thresholds before this index
    open_below: int  # from `kept_below` up to this index it is open; after that, not kept
    answer: AnswerKind


class _LabelCounts:
    """The counts of one pass. Their size depends on K and the number of thresholds, not on the number of labels."""

    def __init__(self, voting: Voting, certificate: LabelCertificate | None) -> None:
        self.voting, self.certificate = voting, certificate
        self.outcomes: Counter[str] = Counter()
        self.questions_by_rare: Counter[bool] = Counter()
        self.cases: Counter[_LabelCase] = Counter()
        self.votes: Counter[str] = Counter()
        self.votes_taken: Counter[int] = Counter()  # votes -> questions
        self.with_truth = 0
        self.chance = 0.0  # right labels to expect if each kept one with a truth were drawn from its options
        by_vote = min(voting.samples, _MAX_STEPS)
        steps = by_vote if voting.confidence == "requested" else _VALID_STEPS
        own = certificate.find_thresholds() if certificate else KindThresholds(voting.threshold, voting.threshold)
        self.thresholds = sorted({*(i / steps for i in range(steps + 1)), *own})
        self.own = {rare: bisect_left(self.thresholds, own.find(rare)) for rare in (False, True)}
        # One bin for each possible number of votes, where these are few enough.
        centred = [(i - 0.5) / by_vote for i in range(by_vote + 2)]
        even = [i / _VALID_STEPS for i in range(_VALID_STEPS + 1)]
        self.requested = _HistogramCounts(centred if voting.samples <= _MAX_STEPS else even)
        self.valid = _HistogramCounts(even)
        self.letters = _LetterCounts()

    def add(self, label: Label, truth: str | None) -> None:
        self.outcomes[label.outcome] += 1
        self.questions_by_rare[label.question.rare] += 1
        self.with_truth += truth is not None
        if truth is not None and label.kept:
            self.chance += 1 / len(label.question.options)
        self.votes.update(
            requested=label.requested,
            taken=label.taken,
            valid=label.valid,
            truncated=label.truncated,
            tokens=label.tokens,
        )
        self.letters.add(label, truth)
        if label.outcome != "quarantined":  # its missing votes are lost, not saved, and it has no confidence
            self.votes["saved"] += label.requested - label.taken
            self.votes_taken[label.taken] += 1
            self.requested.add(label, label.confidence_requested)
            self.valid.add(label, label.confidence_valid)
        if label.outcome in ("labeled", "rejected"):
            self.cases[self._classify(label, truth)] += 1

    def _classify(self, label: Label, truth: str | None) -> _LabelCase:
        least, most = label.confidence_requested if self.voting.confidence == "requested" else label.confidence_valid
        kept_below = bisect_right(self.thresholds, least) if label.outcome == "labeled" else 0
        open_below = bisect_right(self.thresholds, most)
        if label.kept:  # at the run's threshold, hence at all lower ones
            kept_below = max(kept_below, self.own[label.question.rare] + 1)
            open_below = max(open_below, kept_below)
        else:
            open_below = min(open_below, self.own[label.question.rare])
            kept_below = min(kept_below, open_below)
        return _LabelCase(label.question.rare, kept_below, open_below, _classify_answer(label, truth))

    def summarize(self) -> LabelQuality:
        voting, votes, questions = self.voting, self.votes, self.outcomes.total()
        by_kind = QualityByKind(rare=self._summarize_kind(True), common=self._summarize_kind(False))
        kinds = (by_kind.rare, by_kind.common)
        kept, right = sum(kind.kept for kind in kinds), sum(kind.precision.count for kind in kinds)
        truth_known = sum(kind.precision.of for kind in kinds)
        taken, invalid = votes["taken"], votes["taken"] - votes["valid"]
        return LabelQuality(
            samples=voting.samples,
            threshold=self.thresholds[min(self.own.values())],
            certificate=self.certificate,
            confidence=voting.confidence,
            adaptive=voting.adaptive,
            questions=questions,
            labeled=self.outcomes["labeled"],
            ties=self.outcomes["tie"],
            all_invalid=self.outcomes["all_invalid"],
            rejected=self.outcomes["rejected"],
            quarantined=self.outcomes["quarantined"],
            kept=kept,
            kept_share=_divide(kept, questions),
            with_truth=self.with_truth,
            truth_known=truth_known,
            agree_with_truth=right,
            precision=measure_share(right, truth_known),
            chance=_divide(self.chance, truth_known),
            by_kind=by_kind,
            votes=taken,
            votes_requested=votes["requested"],
            votes_saved=votes["saved"],
            invalid_votes=invalid,
            truncated_votes=votes["truncated"],
            rates=VoteRates(
                saved=_divide(votes["saved"], votes["requested"]),
                invalid=_divide(invalid, taken),
                truncated=_divide(votes["truncated"], taken),
            ),
            votes_taken={number: self.votes_taken[number] for number in sorted(self.votes_taken)},
            tokens=votes["tokens"],
            histogram=Histograms(requested=self.requested.summarize(), valid=self.valid.summarize()),
            curve=self._make_curve(questions, self.cases),
            letters=self.letters.summarize(),
        )

    def _summarize_kind(self, rare: bool) -> KindQuality:
        cases = Counter({case: count for case, count in self.cases.items() if case.rare == rare})
        kept: Counter[AnswerKind] = Counter()
        for case, count in cases.items():
            if case.kept_below > self.own[rare]:
                kept[case.answer] += count
        return KindQuality(
            questions=self.questions_by_rare[rare],
            kept=kept.total(),
            precision=measure_share(kept["right"], kept["right"] + kept["wrong"]),
            curve=self._make_curve(self.questions_by_rare[rare], cases),
        )

    def _make_curve(self, questions: int, cases: Counter[_LabelCase]) -> tuple[CurvePoint, ...]:
        curve = []
        for index, threshold in enumerate(self.thresholds):
            kept: Counter[AnswerKind] = Counter()
            maybe: Counter[AnswerKind] = Counter()
            for case, count in cases.items():
                if index < case.kept_below:
                    kept[case.answer] += count
                elif index < case.open_below:
                    maybe[case.answer] += count
            least, most = kept.total(), kept.total() + maybe.total()
            curve.append(
                CurvePoint(
                    threshold=threshold,
                    open=maybe.total(),
                    kept=CountBounds(least=least, most=most),
                    kept_share=ShareBounds(least=_divide(least, questions), most=_divide(most, questions)),
                    precision=_bound_precision(kept, maybe),
                )
            )
        return tuple(curve)


def _classify_answer(label: Label, truth: str | None) -> AnswerKind:
    if truth is None:
        return "unknown"
    if label.outcome == "rejected":
        return "either"
    return "right" if label.answer == truth else "wrong"


def _bound_precision(kept: Counter[AnswerKind], maybe: Counter[AnswerKind]) -> PrecisionBounds | None:
    """Return the bounds of the precision; None if no label with a truth can be kept.

    Args:
        kept: labels that are kept for certain, by their answers.
        maybe: labels that may be kept.
    """
    known = kept["right"] + kept["wrong"]
    least = kept["right"], known + maybe["wrong"] + maybe["either"]
    hits = maybe["right"] + maybe["either"]
    most = kept["right"] + hits, known + hits
    shares = [count / of for count, of in (least, most) if of]
    if not shares:
        return None
    return PrecisionBounds(
        least=shares[0],
        most=shares[-1],
        low=wilson_interval(*least)[0],
        high=wilson_interval(*most)[1],
        known=known,
        open=maybe["right"] + maybe["wrong"] + maybe["either"],
    )


class _HistogramCounts:
    """Counts of a `Histogram`; the last edge belongs to the last bin."""

    def __init__(self, edges: list[float]):
        self.edges = edges
        bins = len(edges) - 1
        self.no_winner, self.exact, self.least, self.most = [0] * bins, [0] * bins, [0] * bins, [0] * bins

    def add(self, label: Label, confidence: tuple[float, float]) -> None:
        least, most = confidence
        if label.outcome in ("tie", "all_invalid"):
            self.no_winner[self._find_bin(least)] += 1
        elif least == most:
            self.exact[self._find_bin(least)] += 1
        else:
            self.least[self._find_bin(least)] += 1
            self.most[self._find_bin(most)] += 1

    def _find_bin(self, value: float) -> int:
        return min(bisect_right(self.edges, value), len(self.edges) - 1) - 1

    def summarize(self) -> Histogram:
        return Histogram(
            edges=tuple(self.edges),
            no_winner=tuple(self.no_winner),
            exact=tuple(self.exact),
            least=tuple(self.least),
            most=tuple(self.most),
        )


class _LetterCounts:
    """Counts of a `LetterBias`, over the votes taken. Adaptive voting takes more votes where these differ."""

    def __init__(self) -> None:
        self.votes_by_options: Counter[int] = Counter()  # number of options -> valid votes on such questions
        self.votes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.votes_known: Counter[str] = Counter()  # on questions with a truth
        self.truth: Counter[str] = Counter()  # letter of the truth -> valid votes on these questions
        self.right: Counter[str] = Counter()  # right ones among these

    def add(self, label: Label, truth: str | None) -> None:
        self.votes_by_options[len(label.question.options)] += label.valid
        self.votes.update(label.counts)
        if label.kept and label.answer:
            self.kept[label.answer] += 1
        if truth is not None:
            self.votes_known.update(label.counts)
            self.truth[truth] += label.valid
            self.right[truth] += label.counts.get(truth, 0)

    def summarize(self) -> LetterBias:
        valid, known = self.votes.total(), self.truth.total()
        by_letter = {}
        off_even = 0.0
        for index, letter in enumerate(LETTERS[: max(self.votes_by_options, default=0)]):
            even = sum(votes / options for options, votes in self.votes_by_options.items() if index < options)
            by_letter[letter] = LetterQuality(
                votes=self.votes[letter],
                share=_divide(self.votes[letter], valid),
                even=_divide(even, valid),
                kept=self.kept[letter],
                share_known=_divide(self.votes_known[letter], known),
                truth=_divide(self.truth[letter], known),
                right=_divide(self.right[letter], self.truth[letter]),
            )
            if valid:
                off_even += abs(self.votes[letter] / valid - even / valid)
        right = [one.right for one in by_letter.values() if one.right is not None]
        return LetterBias(
            by_letter=by_letter,
            imbalance=off_even / 2 if valid else None,
            right=_divide(self.right.total(), known),
            right_by_letter=_divide(sum(right), len(right)),
        )


def _divide(part: float, whole: int) -> float | None:
    return part / whole if whole else None
