"""The files of a vote: its questions, and the votes and labels that it has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.run.paths import VotingPaths
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.segments import list_segments, read_votes


def write_questions(file: Path, questions: Iterable[Question]) -> None:
    """Write `questions` to `file`, in place of what it holds."""
    file.unlink(missing_ok=True)
    with JsonlLedger(file) as ledger:
        ledger.append(*(question.model_dump(mode="json") for question in questions))


def write_labels(folder: Path, labels: Iterable[Label], policy: str = "p", sampling: str = "s") -> Path:
    """Write `labels` with a vote ledger in `folder`; return their file."""
    with VoteLedger(folder, policy, sampling) as ledger:
        for position, label in enumerate(labels):
            ledger.add_label(position, label)
    return VotingPaths(folder).labels


def stored_votes(voting: Path) -> list[Vote]:
    """All votes in the folder of a vote, of every policy."""
    folder = VotingPaths(voting).votes
    return [vote for number in list_segments(folder) for vote in read_votes(folder, number)]


def stored_labels(voting: Path) -> list[Label]:
    """All labels in the folder of a vote."""
    return [Label.model_validate(row) for row in read_jsonl(VotingPaths(voting).labels)]
