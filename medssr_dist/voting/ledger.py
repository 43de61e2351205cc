"""The vote ledger: each vote and each label is on disk exactly once, whatever crashes.

Questions have a fixed order; the position of a question is its line in questions.jsonl. Labels are written strictly in
this order, so label i belongs to question i, and the number of lines in labeled.jsonl is the number of decided
questions. Votes are stored in segments of questions (`segments.py`). They are on disk before the label that they lead
to, and in memory only for the questions in progress. `ledger.json` names the policy and the way of sampling, and holds
counts, so that `medssr status` need not read everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict

from medssr_dist.config.schema import Config
from medssr_dist.data.checksums import LineChecker, seal_line
from medssr_dist.data.jsonl import JsonlLedger, open_bytes, write_json
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question, Vote, hash_content, read_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths
from medssr_dist.voting.segments import Segment, count_votes, find_segment, list_segments, pack_segment, remove_partial

_Row = TypeVar("_Row")


def hash_vote_sampling(config: Config, prompts: PromptRenderer, paraphrases: str = "") -> str:
    """Return a hash of everything that affects a sampled answer, apart from the model and the question.

    Args:
        paraphrases: hash of the further stems (`Paraphrases.hash`).
    """
    voting = config.voting
    forms = {"shuffle_options": config.runtime.random_seed} if voting.shuffle_options else {}
    extras = {"paraphrases": paraphrases} if paraphrases else {}
    recorded = {"logprobs": True} if voting.needs_logprobs else {}
    return hash_content(
        {
            "temperature": voting.temperature,
            "top_p": voting.top_p,
            "max_tokens": voting.max_tokens,
            "max_model_len": config.policy.max_model_len,
            "dtype": config.policy.dtype,
            "instruction": prompts.identity,
            "chat_template": prompts.chat_template,
            **forms,
            **extras,
            **recorded,
        }
    )


def derive_seeds(question_id: str, random_seed: int, samples: int) -> range:
    """Return the seeds of a question's K votes. They depend on `runtime.random_seed` and on the question alone."""
    first = int(hash_content([random_seed, question_id])[:7], 16)
    return range(first, first + samples)


class LedgerCounts(NamedTuple):
    """What a ledger holds. Example: LedgerCounts(labels=10, kept=4, votes=41)"""

    labels: int
    kept: int
    votes: int


class LedgerState(BaseModel):
    """The content of ledger.json.

    Example: LedgerState(policy="3f..", sampling="77..", labels=9, kept=3, label_bytes=4711, packed={0: 16, 1: 16})

    Attributes:
        policy: fingerprint of the policy that votes.
        sampling: hash of the way of sampling (`hash_vote_sampling`).
        labels: labels in the first `label_bytes` bytes of their file; `kept` of them are kept.
        packed: segment -> votes, of the packed segments.
    """

    model_config = ConfigDict(frozen=True)

    policy: str
    sampling: str
    labels: int
    kept: int
    label_bytes: int
    packed: dict[int, int]

    @classmethod
    def read(cls, file: Path) -> LedgerState | None:
        """Read the file; None where there is none."""
        return read_record(cls, file) if file.exists() else None


class _QuestionId(msgspec.Struct):
    id: str


class _StoredLabel(msgspec.Struct):
    """The fields of a line of labeled.jsonl that are read back."""

    question: _QuestionId
    kept: bool
    policy: str
    sampling: str


class _Kept(msgspec.Struct):
    kept: bool


_FIX = "repair the line, or cut the file before it: the votes are kept, and the labels follow from them again"
_decode_label = msgspec.json.Decoder(_StoredLabel).decode
_decode_kept = msgspec.json.Decoder(_Kept).decode


class VoteLedger:
    """The votes and labels of one policy and one way of sampling. Only one process may open it at a time.

    Votes of other policies or ways of sampling in the same files are left alone and never counted. Nothing is on disk
    before `commit`; `close` and the end of the context commit what is in memory.

    Args:
        keep_text: store the texts of the votes.
        hold_text: keep the texts of votes without a label in memory too, for a rule that reads them.

    Attributes:
        labels_file: labeled.jsonl.
        num_labels: labels so far, which is also the position of the next label.
        num_kept: kept labels so far.

    Raises:
        InputError: there are labels of another policy or way of sampling, or a line is broken (file and line named).
    """

    def __init__(self, folder: Path, policy: str, sampling: str, keep_text: bool = True, hold_text: bool = False):
        self.policy, self.sampling, self.keep_text, self._hold_text = policy, sampling, keep_text, hold_text
        paths = VotingPaths(Path(folder))
        self.labels_file, self._state_file, self._folder = paths.labels, paths.ledger, paths.votes
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self._folder)
        self._labels = JsonlLedger(self.labels_file)
        self.num_labels = self.num_kept = 0
        for label in self._read_labels():
            self.num_labels += 1
            self.num_kept += label.kept
        self._num_found = self.num_labels  # labels of earlier attempts
        self._found_ids: Iterator[tuple[int, str]] = iter(())  # position and question of these
        self._label_lines: list[bytes] = []
        self._is_broken = False  # a commit has failed
        self._segments: dict[int, Segment] = {}
        self._open_segment(self.num_labels)  # a broken line is reported now, not hours later
        self._packer = ThreadPoolExecutor(1, "pack-votes")
        self._packing: dict[int, Future[int]] = {}
        self._packed = self._read_packed()
        self._num_closed = 0  # the segments below this number have all their labels, and are with the packer
        self._pack_complete_segments()
        self._write_state()

    def known_votes(self, position: int, question: Question) -> dict[int, Vote]:
        """Return seed -> vote of the votes on a question; empty once it has its label. Texts only with `hold_text`."""
        return {} if position < self.num_labels else self._open_segment(position).find_votes(question.id)

    def add_votes(self, position: int, votes: list[Vote]) -> int:
        """Add votes on the question at `position`. Of votes with equal keys the first counts; none after its label.

        Returns:
            The number of new votes.

        Raises:
            ValueError: a vote is of another policy or way of sampling.
        """
        if position < self.num_labels:
            return 0
        segment = self._open_segment(position)
        for vote in votes:
            if vote.policy != self.policy or vote.sampling != self.sampling:
                raise ValueError(f"vote {vote.key} is not of policy {self.policy} and sampling {self.sampling}")
        return sum([segment.add(vote, self.keep_text) for vote in votes])

    def add_label(self, position: int, label: Label) -> None:
        """Add the label of the question at `position`. Raises ValueError where another label is the next one."""
        if position != self.num_labels:
            raise ValueError(f"the next label is of question {self.num_labels}, not of question {position}")
        self._label_lines.append(seal_line(label.model_dump_json().encode()))
        self._open_segment(position).forget(label.question.id)
        self.num_labels += 1
        self.num_kept += label.kept

    def commit(self) -> None:
        """Write everything that was added to disk, votes before labels, and pack the complete segments.

        Raises:
            InputError: the disk is full. What earlier commits wrote is intact, and nothing more is written.
            ValueError: an earlier commit has failed.
        """
        if self._is_broken:
            raise ValueError("an earlier commit failed: open the ledger again")
        self._is_broken = True
        for segment in self._segments.values():
            segment.write()
        if self._label_lines:
            self._labels.write(b"".join(self._label_lines))
            self._label_lines.clear()
        self._is_broken = False
        self._pack_complete_segments()

    def release(self) -> None:
        """Commit, and drop all segments from memory; they are read again when they are used."""
        self.commit()
        self._close_segments()

    def check_order(self, position: int, question: Question) -> None:
        """Raise InputError where the label at `position` is of another question. Fast for ascending positions."""
        if position >= self._num_found:
            return
        found = next((id for number, id in self._found_ids if number == position), None)
        if found is None:  # the first call, or a position that is not ascending
            self._found_ids = ((i, label.question.id) for i, label in enumerate(self._read_labels()))
            found = next(id for number, id in self._found_ids if number == position)
        if found != question.id:
            raise InputError(
                f"{self.labels_file} line {position + 1} is the label of question {found}, but question "
                f"{position + 1} is {question.id} now: the questions or their order changed; give a new --run-dir"
            )

    def close(self) -> None:
        """Commit, wait for the packer and close the files; after a failed commit only close them."""
        try:
            if not self._is_broken:
                self.commit()
                self._packer.shutdown()
                self._collect_packed()
                self._write_state()
        finally:
            self._packer.shutdown(cancel_futures=True)
            self._close_segments()
            self._labels.close()

    def __enter__(self) -> VoteLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_segment(self, position: int) -> Segment:
        number = find_segment(position)
        if number not in self._segments:
            self._segments[number] = Segment(self._folder, number, self.policy, self.sampling, self._hold_text)
        return self._segments[number]

    def _close_segments(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _read_labels(self) -> Iterator[_StoredLabel]:
        with open_bytes(self.labels_file) as file:
            checker = LineChecker(self.labels_file, fix=_FIX)
            for line in file:
                label = _parse(_decode_label, checker, line, self.labels_file)
                if (label.policy, label.sampling) != (self.policy, self.sampling):
                    raise InputError(
                        f"{self.labels_file} holds labels of another policy or way of sampling ({label.policy}, "
                        f"{label.sampling}); this run's are ({self.policy}, {self.sampling}): give a new --run-dir"
                    )
                yield label

    def _read_packed(self) -> dict[int, int]:
        """Return segment -> votes, as packed by earlier attempts, without segments whose labels were lost since."""
        state = LedgerState.read(self._state_file)
        packed = state.packed if state else {}
        return {number: votes for number, votes in packed.items() if number < find_segment(self.num_labels)}

    def _pack_complete_segments(self) -> None:
        for number in range(self._num_closed, find_segment(self.num_labels)):
            if number in self._segments:
                self._segments.pop(number).close()
            if number not in self._packed:
                self._packing[number] = self._packer.submit(pack_segment, self._folder, number)
        self._num_closed = find_segment(self.num_labels)
        if self._collect_packed():
            self._write_state()

    def _collect_packed(self) -> bool:
        """Record the segments that are packed; return whether there are any. Raises the packer's error."""
        done = [number for number, future in self._packing.items() if future.done()]
        for number in done:
            self._packed[number] = self._packing.pop(number).result()
        return bool(done)

    def _write_state(self) -> None:
        """Write ledger.json. All labels must be on disk, as the state holds the size of their file."""
        state = LedgerState(
            policy=self.policy,
            sampling=self.sampling,
            labels=self.num_labels,
            kept=self.num_kept,
            label_bytes=self._labels.size,
            packed=self._packed,
        )
        write_json(self._state_file, state.model_dump(mode="json"))


def read_ledger_counts(folder: Path) -> LedgerCounts:
    """Count the labels and votes of the ledger in `folder`, also while it is being written.

    Only the labels written after ledger.json and the segments that are not packed are read.
    """
    paths = VotingPaths(folder)
    size = paths.labels.stat().st_size if paths.labels.exists() else 0
    state = LedgerState.read(paths.ledger)
    if state is None or state.label_bytes > size:  # no state yet, or labels were lost since
        state = LedgerState(policy="", sampling="", labels=0, kept=0, label_bytes=0, packed={})
    newer = list(_read_kept(paths.labels, state.label_bytes)) if size else []
    packed = {number: state.packed.get(number) for number in list_segments(paths.votes)}
    votes = sum(count_votes(paths.votes, number) if known is None else known for number, known in packed.items())
    return LedgerCounts(state.labels + len(newer), state.kept + sum(newer), votes)


def _read_kept(labels_file: Path, offset: int) -> Iterator[bool]:
    """Yield whether each label from byte `offset` on is kept; an incomplete last line is skipped."""
    with open_bytes(labels_file) as file:
        file.seek(offset)
        checker = LineChecker(labels_file, fix=_FIX)
        for line in file:
            if line.endswith(b"\n"):
                yield _parse(_decode_kept, checker, line, labels_file).kept


def _parse(decode: Callable[[bytes], _Row], checker: LineChecker, line: bytes, file: Path) -> _Row:
    """Decode the checker's next line. Raises InputError, with file and line."""
    text = checker.open(line) or b""
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file} line {checker.number} is not a label ({error}); {_FIX}") from None
