"""The audit of a simulated vote: its ledger's files compared with what full voting would have given."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.bench.voting.simulated_vote import POLICY, SAMPLING
from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, Question
from medssr_dist.run.paths import VotingPaths
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import derive_seeds
from medssr_dist.voting.segments import SEGMENT_QUESTIONS, find_segment, list_segments, read_votes
from medssr_dist.voting.tally import Tally


@dataclass(frozen=True)
class Audit:
    """Votes on disk compared with full voting; `labels_unlike_full_voting` counts labels, the others votes and tokens.

    >>> Audit(lost=0, doubled=0, labels_unlike_full_voting=0, votes=624103, tokens=331042001)
    """

    lost: int
    doubled: int
    labels_unlike_full_voting: int
    votes: int
    tokens: int


def audit_ledger(folder: Path, config: Config, answers: DrawnAnswers) -> Audit:
    """Compare the ledger's files in `folder` with full voting."""
    found = Counter(lost=0, doubled=0, labels_unlike_full_voting=0, votes=0, tokens=0)
    labels = (Label.model_validate(row) for row in read_jsonl(VotingPaths(folder).labels))
    votes: dict[str, list[tuple[int, int]]] = {}
    for position, row in enumerate(read_jsonl(folder / "questions.jsonl")):
        if position % SEGMENT_QUESTIONS == 0:
            votes = _read_segment(VotingPaths(folder).votes, find_segment(position))
        question = Question.model_validate(row)
        found.update(_audit_question(question, next(labels, None), votes.get(question.id, []), config, answers))
    found["doubled"] += sum(1 for _ in labels)
    return Audit(**found)


def _read_segment(folder: Path, segment: int) -> dict[str, list[tuple[int, int]]]:
    """Return question -> (seed, tokens) of its votes on disk."""
    found = defaultdict(list)
    if segment in list_segments(folder):
        for vote in read_votes(folder, segment):
            found[vote.question_id].append((vote.seed, vote.tokens))
    return found


def _audit_question(
    question: Question, label: Label | None, votes: list[tuple[int, int]], config: Config, answers: DrawnAnswers
) -> dict[str, int]:
    """Return what one question adds to the counts of the audit."""
    seeds = {seed for seed, _ in votes}
    found = {"votes": len(votes), "tokens": sum(tokens for _, tokens in votes), "doubled": len(votes) - len(seeds)}
    if label is None or label.question.id != question.id or label.outcome == "quarantined":
        return found | {"lost": config.voting.samples - len(seeds), "labels_unlike_full_voting": 1}
    full = label_by_full_vote(question, config, answers)
    same = (label.outcome, label.answer, label.kept) == (full.outcome, full.answer, full.kept)
    return found | {"lost": max(0, label.taken - len(seeds)), "labels_unlike_full_voting": int(not same)}


def label_by_full_vote(question: Question, config: Config, answers: DrawnAnswers) -> Label:
    """Return the label that all K votes give."""
    tally = Tally()
    for seed in derive_seeds(question.id, config.runtime.random_seed, config.voting.samples):
        tally = tally.add(answers.draw(question.id, question.options, seed).answer)
    return label_question(question, tally, config.voting, tokens=0, truncated=0, policy=POLICY, sampling=SAMPLING)
