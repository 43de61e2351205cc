"""What `voting.calibrate` promises: slice, counts, thresholds and bounds (in certificate.json and quality.json)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from medssr_dist.data.wilson import format_percent

SCOPE = "questions drawn like the slice and voted on in the same way; of other questions it says nothing"


class KindThresholds(NamedTuple):
    """The thresholds of both kinds of questions. Example: KindThresholds(rare=0.8125, common=0.75)"""

    rare: float
    common: float

    def find(self, rare: bool) -> float:
        """Return the threshold of one kind."""
        return self.rare if rare else self.common


class CertifiedThreshold(BaseModel):
    """A threshold, and how it was found on one kind of the slice's questions.

    Example: CertifiedThreshold(kind="all", threshold=0.75, questions=500, tested=4, kept=310, right=295, bound=0.926)

    Attributes:
        kind: all, or only the questions on rare diseases, or only the others.
        questions: of the slice, of this kind.
        tested: thresholds that passed, from the largest share downwards; the last one is `threshold`.
        kept: labels of the slice that reach the threshold.
        right: of these, the right ones.
        bound: the precision is above this with the confidence promised (Clopper-Pearson).
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["all", "rare", "common"]
    threshold: float
    questions: int
    tested: int
    kept: int
    right: int
    bound: float


class LabelCertificate(BaseModel):
    """What the kept labels of a run are promised, and from what.

    Example: LabelCertificate(data=("slice.jsonl",), data_hash="9f0c...", precision=0.9, confidence=0.95, samples=16,
    denominator="valid", rule="majority", policy="3f..", sampling="77..", thresholds=(found,), scope="questions ...")

    Attributes:
        data: names of the data sets of the slice.
        data_hash: of its questions and their answers.
        precision: share of right labels promised, for each of `thresholds`.
        confidence: probability, over the draw of the slice, that all of them keep the promise.
        samples: K.
        denominator: of the vote share, requested or valid.
        rule: `voting.rule`.
        policy: fingerprint of the policy that voted.
        sampling: hash of the way of sampling.
        thresholds: one for all questions, or one for each kind.
        scope: the questions for which the promise holds.
    """

    model_config = ConfigDict(frozen=True)
    data: tuple[str, ...]
    data_hash: str
    precision: float
    confidence: float
    samples: int
    denominator: str
    rule: str
    policy: str
    sampling: str
    thresholds: tuple[CertifiedThreshold, ...]
    scope: str = SCOPE

    def find_thresholds(self) -> KindThresholds:
        """Return the threshold of each kind of questions."""
        by_kind = {each.kind: each.threshold for each in self.thresholds}
        everywhere = by_kind.get("all", 0.0)
        return KindThresholds(by_kind.get("rare", everywhere), by_kind.get("common", everywhere))


def format_certificate(certificate: LabelCertificate) -> str:
    """Return the promise and its evidence as one sentence."""
    parts = [
        f"{'' if each.kind == 'all' else each.kind + ' '}share >= {each.threshold:.4g}: {each.right:,} of "
        f"{each.kept:,} right, so above {format_percent(each.bound)}"
        for each in certificate.thresholds
    ]
    return (
        f"at least {format_percent(certificate.precision)} of the kept labels are right, with "
        f"{format_percent(certificate.confidence)} confidence, on {certificate.scope}; slice: "
        f"{', '.join(certificate.data)}, {sum(each.questions for each in certificate.thresholds):,} questions; "
        + "; ".join(parts)
    )
