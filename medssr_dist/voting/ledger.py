"""Votes and labels on disk as they come; a vote exists once, whatever crashed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from medssr_dist.answers import INSTRUCTION
from medssr_dist.config import Config
from medssr_dist.errors import InputError
from medssr_dist.jsonl import JsonlLedger, read_jsonl
from medssr_dist.records import Label, Question, Vote, content_hash, parse_record


def sampling_hash(config: Config, chat_template: str | None) -> str:
    """Hash of all that shapes a sampled answer besides the model and the question."""
    voting = config.voting
    return content_hash(
        {
            "temperature": voting.temperature,
            "top_p": voting.top_p,
            "max_tokens": voting.max_tokens,
            "max_model_len": config.policy.max_model_len,
            "dtype": config.policy.dtype,
            "instruction": INSTRUCTION,
            "chat_template": chat_template,
        }
    )


class VoteLedger:
    """`votes.jsonl` and `labeled.jsonl` of one policy and one way of sampling."""

    def __init__(self, folder: Path, policy: str, sampling: str):
        self.policy, self.sampling = policy, sampling
        self.labels_file = folder / "labeled.jsonl"
        self._votes = JsonlLedger(folder / "votes.jsonl")
        self._labels = JsonlLedger(self.labels_file)
        self._by_question: dict[str, dict[int, Vote]] = defaultdict(dict)
        for row in read_jsonl(folder / "votes.jsonl"):
            vote = parse_record(Vote, row, str(folder / "votes.jsonl"))
            if (vote.policy, vote.sampling) == (policy, sampling):
                self._remember(vote)
        self.labels = {label.question.id: label for label in self._stored_labels()}
        self.kept = sum(label.kept for label in self.labels.values())

    def _stored_labels(self) -> Iterator[Label]:
        for row in read_jsonl(self.labels_file):
            label = parse_record(Label, row, str(self.labels_file))
            if (label.policy, label.sampling) != (self.policy, self.sampling):
                raise InputError(
                    f"{self.labels_file} holds labels of another policy or way of sampling ({label.policy}, "
                    f"{label.sampling}); this run's are ({self.policy}, {self.sampling}): give a new --run-dir"
                )
            yield label

    def _remember(self, vote: Vote) -> None:
        """Without its text: those of a long run would not fit into memory, and are on disk."""
        self._by_question[vote.question_id][vote.seed] = vote.model_copy(update={"text": ""})

    def votes_of(self, question: Question) -> dict[int, Vote]:
        """Seed -> vote without its text, of those already taken."""
        return self._by_question[question.id]

    def add_votes(self, votes: list[Vote]) -> None:
        """Store votes; returns once they are on disk."""
        self._votes.append(*(vote.model_dump() for vote in votes))
        for vote in votes:
            self._remember(vote)

    def add_label(self, label: Label) -> None:
        self._labels.append(label.model_dump())
        self.labels[label.question.id] = label
        self.kept += label.kept

    def all_votes(self, question_ids: set[str]) -> Iterator[Vote]:
        for question_id in question_ids:
            yield from self._by_question[question_id].values()

    def __enter__(self) -> VoteLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._votes.close()
        self._labels.close()
