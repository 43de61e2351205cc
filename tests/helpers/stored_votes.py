"""What a vote has left on disk."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, Vote
from medssr_dist.voting.segments import list_segments, read_votes


def stored_votes(voting: Path) -> list[Vote]:
    folder = voting / "votes"
    return [vote for number in list_segments(folder) for vote in read_votes(folder, number)]


def stored_labels(voting: Path) -> list[Label]:
    return [Label.model_validate(row) for row in read_jsonl(voting / "labeled.jsonl")]
