"""`voting.calibrate`: a threshold with a guarantee, from the votes on human-labelled questions (fixed_sequence.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medssr_dist.config.label_settings import Calibrate
from medssr_dist.config.voting import Voting
from medssr_dist.data.exact_bound import bound_from_below
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.label_certificate import CertifiedThreshold, LabelCertificate
from medssr_dist.data.records import Label, Question, hash_content
from medssr_dist.data.wilson import format_part
from medssr_dist.errors import InputError
from medssr_dist.voting.fixed_sequence import (
    JudgedLabel,
    KeptCounts,
    count_enough,
    count_fewest,
    count_kept,
    count_needed,
    list_thresholds,
    run_sequence,
)

_KEY = "voting.calibrate"
_Kind = Literal["all", "rare", "common"]


@dataclass(frozen=True)
class CalibrationSlice:
    """The human-labelled questions, and the names of their data sets.

    Example: CalibrationSlice(questions=(question, ...), names=("slice.jsonl",))
    """

    questions: tuple[Question, ...]
    names: tuple[str, ...]

    def write(self, file: Path) -> None:
        """Write the questions as the vote reads them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with JsonlLedger(file) as ledger:
            ledger.append(*(question.model_dump(mode="json") for question in self.questions))


def make_slice_voting(voting: Voting) -> Voting:
    """Return the settings for the votes on the slice: as the run's, with all K votes on every question."""
    return voting.model_copy(update={"adaptive": "never", "threshold": 0.0, "kept": 0, "calibrate": None})


def judge_label(label: Label, voting: Voting) -> JudgedLabel:
    """Compare a label of the slice with the known answer. `voting`: its denominator counts."""
    of = label.confidence_requested if voting.confidence == "requested" else label.confidence_valid
    share = of[0] if label.outcome == "labeled" else None
    return JudgedLabel(share, label.answer == label.question.truth, label.question.rare)


def certify(labels: Sequence[Label], calibration: CalibrationSlice, voting: Voting) -> LabelCertificate:
    """Choose the thresholds by the labels of the slice.

    Raises:
        InputError: the slice is too small, or no threshold reaches the precision wanted.
    """
    wanted = _require(voting)
    judged = [judge_label(label, voting) for label in labels]
    return LabelCertificate(
        data=calibration.names,
        data_hash=hash_content([[question.id, question.truth] for question in calibration.questions]),
        precision=wanted.precision,
        confidence=wanted.confidence,
        samples=voting.samples,
        denominator=voting.confidence,
        rule=voting.rule,
        policy=labels[0].policy,
        sampling=labels[0].sampling,
        thresholds=choose_thresholds(judged, voting),
    )


def choose_thresholds(labels: Sequence[JudgedLabel], voting: Voting) -> tuple[CertifiedThreshold, ...]:
    """Return the certified threshold of each kind of questions, or one for all where the slice has too few of a kind.

    Two thresholds share the error: each is tested at half of 1 - confidence, so that both hold together.

    Raises:
        InputError: the slice is too small, or no threshold reaches the precision wanted.
    """
    wanted = _require(voting)
    thresholds = list_thresholds(voting.samples, voting.threshold)
    halved = 1 - (1 - wanted.confidence) / 2
    kinds: dict[_Kind, list[JudgedLabel]] = {
        "rare": [label for label in labels if label.rare],
        "common": [label for label in labels if not label.rare],
    }
    enough = count_enough(wanted.precision, halved)
    if wanted.by_kind and all(count_kept(kind, thresholds[-1]).kept >= enough for kind in kinds.values()):
        return tuple(_certify_kind(name, kind, thresholds, wanted, halved) for name, kind in kinds.items())
    return (_certify_kind("all", labels, thresholds, wanted, wanted.confidence),)


def _require(voting: Voting) -> Calibrate:
    if voting.calibrate is None:
        raise ValueError("voting.calibrate is off")
    return voting.calibrate


def _certify_kind(
    kind: _Kind, labels: Sequence[JudgedLabel], thresholds: Sequence[float], wanted: Calibrate, confidence: float
) -> CertifiedThreshold:
    passed, failed = run_sequence(labels, thresholds, wanted.precision, confidence)
    if not passed:
        counts = [count_kept(labels, threshold) for threshold in thresholds]
        raise InputError(_explain_refusal(kind, len(labels), counts, failed, wanted, confidence))
    threshold, kept, right = passed[-1]
    return CertifiedThreshold(
        kind=kind,
        threshold=threshold,
        questions=len(labels),
        tested=len(passed),
        kept=kept,
        right=right,
        bound=bound_from_below(right, kept, confidence),
    )


def _explain_refusal(
    kind: _Kind,
    questions: int,
    counts: Sequence[KeptCounts],
    failed: KeptCounts | None,
    wanted: Calibrate,
    confidence: float,
) -> str:
    """Return why there is no threshold, with the number of questions that would do."""
    about = (
        f"{_KEY}: {'' if kind == 'all' else kind + ' questions: '}no threshold of {counts[-1].threshold:.4g} or more"
    )
    promise = f"has a precision of {wanted.precision:g} with confidence {confidence:g}"
    most = counts[-1].kept
    if most < (fewest := count_fewest(wanted.precision, confidence)):
        needed = str(-(-questions * fewest // most)) if most else "more"
        return (
            f"{about} {promise}: it takes at least {fewest} labels, all right, but the slice of {questions} questions "
            f"gives {most}; give about {needed} questions or more, or lower precision or confidence"
        )
    options = [
        (-(-questions * labels // each.kept), each)
        for each in counts
        if each.kept >= fewest and (labels := count_needed(each.right / each.kept, wanted.precision, confidence))
    ]
    tried = failed or counts[-1]
    seen = (
        f"of the labels with a share of {tried.threshold:.4g} or more, {format_part(tried.right, tried.kept)} are right"
    )
    if not options:
        best = max(each.right / each.kept for each in counts if each.kept >= fewest)
        return (
            f"{about} {promise}: {seen}, and at no share that {fewest} labels reach are more than {best:.3f} right; "
            f"set {_KEY}.precision below that, or vote with more samples"
        )
    needed_questions, each = min(options)
    share = f"{each.right / each.kept:.3f} at a share of {each.threshold:.4g}"
    return (
        f"{about} {promise}: {seen}; give about {max(needed_questions, questions + 1):,} questions in place of "
        f"{questions:,} (if it stays at {share}), or lower {_KEY}.precision or confidence"
    )
