"""The vote ledger: each vote and each label on disk exactly once, whatever crashed.

Questions have a fixed order; the position of one is its line in questions.jsonl. Labels are written strictly in
that order, so that label i is of question i and the lines of labeled.jsonl say what is decided. Votes stand in
segments of questions (voting/segments.py), are on disk before the label that follows from them, and are in memory
only for the questions under way. `ledger.json` says whose votes these are, and holds counts for a quick look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from medssr_dist.config.schema import Config
from medssr_dist.data.answers import INSTRUCTION
from medssr_dist.data.jsonl import JsonlLedger, read_json, write_json
from medssr_dist.data.records import Label, Question, Vote, hash_content
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths
from medssr_dist.voting.segments import (
    Segment,
    count_votes,
    list_segments,
    pack_segment,
    remove_leftovers,
    segment_number,
)

_Row = TypeVar("_Row")


def hash_vote_sampling(config: Config, chat_template: str | None) -> str:
    """Hash of all that shapes a sampled answer besides the model and the question."""
    voting = config.voting
    return hash_content(
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


def derive_seeds(question_id: str, random_seed: int, samples: int) -> range:
    """Seeds of a question's K votes: the same in every run with this `runtime.random_seed`, apart from others'."""
    first = int(hash_content([random_seed, question_id])[:7], 16)
    return range(first, first + samples)


class LedgerCounts(NamedTuple):
    """What a ledger holds."""

    labels: int
    kept: int
    votes: int


class _QuestionId(msgspec.Struct):
    id: str


class _StoredLabel(msgspec.Struct):
    """What is read back of a line of labeled.jsonl."""

    question: _QuestionId
    kept: bool
    policy: str
    sampling: str


class _Kept(msgspec.Struct):
    kept: bool


_decode_label = msgspec.json.Decoder(_StoredLabel).decode
_decode_kept = msgspec.json.Decoder(_Kept).decode


class VoteLedger:
    """The votes and labels of one policy and one way of sampling. One process at a time holds it.

    Votes of others in the same files are left alone and never counted. Nothing is on disk before `commit`;
    leaving the context, or `close`, commits what is complete in memory.

    Raises:
        InputError: labels of another policy or way of sampling are there, or a line is broken (file and line named).
    """

    def __init__(self, folder: Path, policy: str, sampling: str, keep_text: bool = True):
        self.policy, self.sampling, self.keep_text = policy, sampling, keep_text
        paths = VotingPaths(Path(folder))
        self.labels_file, self._file, self._folder = paths.labels, paths.ledger, paths.votes
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder)
        self._labels = JsonlLedger(self.labels_file)
        self.num_labels = self.num_kept = 0
        for label in self._stored_labels():
            self.num_labels += 1
            self.num_kept += label.kept
        self._found = self.num_labels
        self._order: Iterator[tuple[int, str]] = iter(())
        self._label_lines: list[bytes] = []
        self._broken = False  # a commit did not come to its end
        self._segments: dict[int, Segment] = {}
        self._segment(self.num_labels)  # a broken line is told now, not hours later
        self._packer = ThreadPoolExecutor(1, "pack-votes")
        self._packing: dict[int, Future[int]] = {}
        self._packed = self._packed_before()
        self._over = 0  # segments below have all their labels, and were given to the packer
        self._pack_what_is_over()
        self._write_counts()

    def known_votes(self, position: int, question: Question) -> dict[int, Vote]:
        """Seed -> vote without its text, of those taken on a question; empty once it has its label."""
        return {} if position < self.num_labels else self._segment(position).votes(question.id)

    def add_votes(self, position: int, votes: list[Vote]) -> int:
        """Take votes on the question at `position`. The first of a key stands, and none follows its label.

        Returns:
            How many of them were new.
        Raises:
            ValueError: a vote is of another policy or way of sampling.
        """
        if position < self.num_labels:
            return 0
        segment = self._segment(position)
        for vote in votes:
            if vote.policy != self.policy or vote.sampling != self.sampling:
                raise ValueError(f"vote {vote.key} is not of policy {self.policy} and sampling {self.sampling}")
        return sum([segment.add(vote, self.keep_text) for vote in votes])

    def add_label(self, position: int, label: Label) -> None:
        """Take the label of the question at `position`. Raises ValueError unless that is the next one."""
        if position != self.num_labels:
            raise ValueError(f"the next label is of question {self.num_labels}, not of question {position}")
        self._label_lines.append(label.model_dump_json().encode() + b"\n")
        self._segment(position).forget(label.question.id)
        self.num_labels += 1
        self.num_kept += label.kept

    def commit(self) -> None:
        """Bring all that was added to disk, votes before labels; segments that are over go to be packed.

        Raises:
            InputError: the disk is full. What an earlier commit wrote stands, and no more is written.
        """
        if self._broken:
            raise ValueError("an earlier commit failed: open the ledger again")
        self._broken = True
        for segment in self._segments.values():
            segment.write()
        if self._label_lines:
            self._labels.write(b"".join(self._label_lines))
            self._label_lines.clear()
        self._broken = False
        self._pack_what_is_over()

    def release(self) -> None:
        """Commit, and drop from memory what is known of all segments; it is read again when it is asked for."""
        self.commit()
        self._close_segments()

    def check_order(self, position: int, question: Question) -> None:
        """Raise InputError where the label at `position` is of another question. Quick for ascending positions."""
        if position >= self._found:
            return
        found = next((label for label in self._order if label[0] == position), None)
        if found is None:  # the first call, or not ascending
            self._order = ((i, label.question.id) for i, label in enumerate(self._stored_labels()))
            found = next(label for label in self._order if label[0] == position)
        if found[1] != question.id:
            raise InputError(
                f"{self.labels_file} line {position + 1} is the label of question {found[1]}, but question "
                f"{position + 1} is {question.id} now: the questions or their order changed; give a new --run-dir"
            )

    def close(self) -> None:
        """Commit, wait for the packing and close the files; after a failed commit only close them."""
        try:
            if not self._broken:
                self.commit()
                self._packer.shutdown()
                self._note_packed()
                self._write_counts()
        finally:
            self._packer.shutdown(cancel_futures=True)
            self._close_segments()
            self._labels.close()

    def __enter__(self) -> VoteLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _segment(self, position: int) -> Segment:
        number = segment_number(position)
        if number not in self._segments:
            self._segments[number] = Segment(self._folder, number, self.policy, self.sampling)
        return self._segments[number]

    def _close_segments(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _stored_labels(self) -> Iterator[_StoredLabel]:
        with open(self.labels_file, "rb") as file:
            for number, line in enumerate(file, start=1):
                label = _parse(_decode_label, line, f"{self.labels_file} line {number}")
                if (label.policy, label.sampling) != (self.policy, self.sampling):
                    raise InputError(
                        f"{self.labels_file} holds labels of another policy or way of sampling ({label.policy}, "
                        f"{label.sampling}); this run's are ({self.policy}, {self.sampling}): give a new --run-dir"
                    )
                yield label

    def _packed_before(self) -> dict[int, int]:
        """Segment -> votes, of those packed by earlier attempts; without those whose labels were lost since."""
        if not self._file.exists():
            return {}
        stored = {int(number): votes for number, votes in read_json(self._file)["packed"].items()}
        return {number: votes for number, votes in stored.items() if number < segment_number(self.num_labels)}

    def _pack_what_is_over(self) -> None:
        for number in range(self._over, segment_number(self.num_labels)):
            if number in self._segments:
                self._segments.pop(number).close()
            if number not in self._packed:
                self._packing[number] = self._packer.submit(pack_segment, self._folder, number)
        self._over = segment_number(self.num_labels)
        if self._note_packed():
            self._write_counts()

    def _note_packed(self) -> bool:
        """Take in what the packer has done; whether there was something. Raises what it ran into."""
        done = [number for number, future in self._packing.items() if future.done()]
        for number in done:
            self._packed[number] = self._packing.pop(number).result()
        return bool(done)

    def _write_counts(self) -> None:
        """To be called when all labels are on disk: the counts are of the first `label_bytes` of their file."""
        counts = {
            "labels": self.num_labels,
            "kept": self.num_kept,
            "label_bytes": self._labels.size,
            "packed": self._packed,
        }
        write_json(self._file, {"policy": self.policy, "sampling": self.sampling, **counts})


def read_ledger_counts(folder: Path) -> LedgerCounts:
    """What the ledger in `folder` holds, also while it is being written.

    Read are only the labels that came after ledger.json was written, and the segments that are not packed.
    """
    paths = VotingPaths(folder)
    votes, labels_file = paths.votes, paths.labels
    size = labels_file.stat().st_size if labels_file.exists() else 0
    found = read_json(paths.ledger) if paths.ledger.exists() else None
    if found is None or found["label_bytes"] > size:  # none yet, or labels were lost since
        found = {"labels": 0, "kept": 0, "label_bytes": 0, "packed": {}}
    newer = list(_kept_after(labels_file, found["label_bytes"])) if size else []
    packed = {number: found["packed"].get(str(number)) for number in list_segments(votes)}
    taken = sum(count_votes(votes, number) if known is None else known for number, known in packed.items())
    return LedgerCounts(found["labels"] + len(newer), found["kept"] + sum(newer), taken)


def _kept_after(labels_file: Path, offset: int) -> Iterator[bool]:
    with open(labels_file, "rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield _parse(_decode_kept, line, str(labels_file)).kept


def _parse(decode: Callable[[bytes], _Row], line: bytes, where: str) -> _Row:
    try:
        return decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{where} is not a label ({error}); repair the line, or cut the file before it: the votes are kept, and "
            "the labels from there on follow from them again"
        ) from None
