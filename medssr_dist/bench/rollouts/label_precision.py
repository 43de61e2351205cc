"""Labels of the policy in training and of the base policy on the same questions, where the answer is known."""

from __future__ import annotations

from dataclasses import dataclass

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, parse_record
from medssr_dist.data.wilson import Share, measure_share
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import VotingPaths


@dataclass(frozen=True)
class RevoteFigures:
    """One vote of the policy in training.

    Attributes:
        step: after which it was taken.
        votes, full_votes: votes taken, and those of full voting (K for each question).
        offline, online: share of the kept labels that are right, of those with a known answer.
        flips: lines of flips.jsonl of this step; `traced`: of them, those whose votes are in the two ledgers.
    """

    step: int
    questions: int
    votes: int
    full_votes: int
    offline: Share
    online: Share
    flips: int
    traced: int


def read_revotes(run: RunDir) -> list[RevoteFigures]:
    """Return the figures of every vote of a stage 1 with `voting.online`."""
    stage = run.stage("stage1")
    base = {label.question.id: label for label in _read_labels(run.voting)}
    flips = list(read_jsonl(stage.flips)) if stage.flips.exists() else []
    found = []
    for step in stage.revoted_steps():
        labels = _read_labels(VotingPaths(stage.revote_at(step)))
        own = {label.question.id: label for label in labels}
        flipped = [flip for flip in flips if flip["step"] == step]
        found.append(
            RevoteFigures(
                step=step,
                questions=len(labels),
                votes=sum(label.taken for label in labels),
                full_votes=sum(label.requested for label in labels),
                offline=_measure_precision([base[label.question.id] for label in labels]),
                online=_measure_precision(labels),
                flips=len(flipped),
                traced=sum(flip["after"]["counts"] == own[flip["question_id"]].counts for flip in flipped),
            )
        )
    return found


def _read_labels(paths: VotingPaths) -> list[Label]:
    return [parse_record(Label, row, str(paths.labels)) for row in read_jsonl(paths.labels)]


def _measure_precision(labels: list[Label]) -> Share:
    known = [(label.answer, find_hpo_truth(label.question)) for label in labels if label.kept]
    pairs = [(answer, truth) for answer, truth in known if truth is not None]
    return measure_share(sum(answer == truth for answer, truth in pairs), len(pairs))
