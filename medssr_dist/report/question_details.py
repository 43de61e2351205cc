"""The questions of a run for its report: facts, wording, passages, votes and rollouts, each in its own blocks.

All questions are in one order: first those of which rollouts were recorded, then by id, which is a hash, so any first
part is a fair sample. The facts of a question include the letters of all its votes. The texts of the votes are included
as far as there is room; the page names the file that holds all of them.
"""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medssr_dist.data.records import Label, Question, Rejected, Vote, parse_record
from medssr_dist.report.detail_store import DetailStore
from medssr_dist.run.paths import STAGES, RunPaths, packed_vote_segment, vote_segment
from medssr_dist.run.stream import follow
from medssr_dist.voting.segments import find_segment, list_segments, read_votes

_FACTS, _WORDINGS, _VOTES, _ROLLOUTS, _REJECTED = 512, 256, 32, 64, 64  # rows in a block
_MOST_COMPRESSION = 8  # texts are never compressed more than this
_REJECTED_OF_A_REASON = 200


@dataclass
class ReportQuestion:
    """A question of a run, with its label once the vote has one.

    Attributes:
        position: line of questions.jsonl, from 0; its votes are in the segment of this position.
        letters: the letters of its votes in the order of their arrival; "-" for none.
        truth: the right answer, where the run knows it.
    """

    question: Question
    position: int
    label: Label | None = None
    truth: str | None = None
    letters: str = ""


class VoteText(NamedTuple):
    """What a reader sees of a vote; letter "-" for none. Example: VoteText("B", 17, 12, "The answer is B.")"""

    letter: str
    seed: int
    tokens: int
    text: str


@dataclass(frozen=True)
class RolloutRow:
    """An answer of training that was recorded.

    Example: RolloutRow("stage1", 5, "ab..", "The answer is B.", "B", 1.0, "<|user|>A patient ...")
    """

    stage: str
    step: int
    question_id: str
    response: str
    label: str
    reward: float
    prompt: str


def read_report_questions(run: RunPaths, find_truth: Callable[[Question], str | None]) -> list[ReportQuestion]:
    """Return the accepted questions with their labels, in the order of questions.jsonl; [] before the synthesis.

    Args:
        find_truth: returns the known answer of a question, or None.
    """
    found: dict[str, ReportQuestion] = {}
    for row in _read(run.synthesis.questions):
        question = parse_record(Question, row, str(run.synthesis.questions))
        found[question.id] = ReportQuestion(question, len(found))
    for row in _read(run.voting.labels):
        label = parse_record(Label, row, str(run.voting.labels))
        entry = found.setdefault(label.question.id, ReportQuestion(label.question, len(found)))
        entry.label = label
    for entry in found.values():
        entry.truth = entry.question.truth or find_truth(entry.question)
    return list(found.values())


def read_rollouts(run: RunPaths) -> list[RolloutRow]:
    """Return the recorded answers of both stages."""
    rows = []
    for stage in STAGES:
        for row in _read(run.stage(stage).samples):
            facts = {name: row.get(name) for name in ("step", "question_id", "response", "label", "reward", "prompt")}
            rows.append(parse_record(RolloutRow, {"stage": stage, **facts}, str(run.stage(stage).samples)))
    return rows


def order_questions(questions: Iterable[ReportQuestion], recorded: set[str]) -> list[ReportQuestion]:
    """Return the questions with the most important first: see the docstring of this module."""
    return sorted(questions, key=lambda entry: (entry.question.id not in recorded, entry.question.id))


def add_questions(store: DetailStore, ordered: list[ReportQuestion], share: int) -> None:
    """Add the wording of the questions; `share` is for wordings, facts take what they need."""
    rows = (_list_wording(entry) for entry in ordered)
    store.add("wordings", rows, len(ordered), _WORDINGS, share)


def add_facts(store: DetailStore, ordered: list[ReportQuestion]) -> None:
    """Add the facts of the questions, which the lists of the page are made from."""
    store.add("facts", (_list_facts(entry) for entry in ordered), len(ordered), _FACTS, store.left)


def add_rollouts(store: DetailStore, rollouts: list[RolloutRow], share: int) -> None:
    """Add recorded answers of training, evenly over the steps where not all have room."""
    rank: Counter[tuple[str, int]] = Counter()
    numbered = []
    for row in rollouts:
        numbered.append((rank[row.stage, row.step], row))
        rank[row.stage, row.step] += 1
    spread = [row for _, row in sorted(numbered, key=lambda pair: pair[0])]
    cells = ([row.stage, row.step, row.question_id, row.response, row.label, row.reward, row.prompt] for row in spread)
    store.add("rollouts", cells, len(rollouts), _ROLLOUTS, share)


def add_rejected(store: DetailStore, run: RunPaths, share: int) -> None:
    """Add rejected replies, up to 200 of each reason."""
    shown: list[list[Any]] = []
    by_reason: Counter[str] = Counter()
    for row in _read(run.synthesis.rejected):
        rejected = parse_record(Rejected, row, str(run.synthesis.rejected))
        by_reason[rejected.reason] += 1
        if by_reason[rejected.reason] <= _REJECTED_OF_A_REASON:
            shown.append([rejected.index, rejected.reason, rejected.detail, rejected.reply])
    store.add("rejected", shown, by_reason.total(), _REJECTED, share)


def read_letters_and_texts(run: RunPaths, ordered: list[ReportQuestion], budget: int) -> dict[str, list[VoteText]]:
    """Read all votes: set `letters` of the questions, and return the texts of those that may have room.

    Args:
        budget: bytes of the page that texts of votes may take.

    Returns:
        question id -> its votes, for the first questions of `ordered`.
    """
    known = {entry.question.id: entry for entry in ordered}
    segments = list_segments(run.voting.votes)
    size = sum(_measure_segment(run.voting.votes, number) for number in segments)
    fitting = (
        len(ordered) if size <= budget * _MOST_COMPRESSION else int(len(ordered) * budget * _MOST_COMPRESSION / size)
    )
    texts: dict[str, list[VoteText]] = {entry.question.id: [] for entry in ordered[:fitting]}
    for number in segments:
        letters: dict[str, list[str]] = defaultdict(list)
        for vote in read_votes(run.voting.votes, number):
            entry = known.get(vote.question_id)
            if entry is None or not _counts(vote, entry.label):
                continue
            letter = vote.answer or "-"
            letters[vote.question_id].append(letter)
            if vote.question_id in texts:
                texts[vote.question_id].append(VoteText(letter, vote.seed, vote.tokens, vote.text))
        for question_id, own in letters.items():
            known[question_id].letters += "".join(own)
    return texts


def add_votes(
    store: DetailStore, ordered: list[ReportQuestion], texts: Mapping[str, list[VoteText]], share: int
) -> None:
    """Add the texts of votes, for as many questions as have room; nothing where the run kept no texts."""
    if not any(text for votes in texts.values() for *_, text in votes):
        store.add("votes", [], len(ordered), _VOTES, 0)
        return
    rows = ([list(vote) for vote in texts[entry.question.id]] for entry in ordered if entry.question.id in texts)
    store.add("votes", rows, len(ordered), _VOTES, share)


def _counts(vote: Vote, label: Label | None) -> bool:
    return label is None or (vote.policy, vote.sampling) == (label.policy, label.sampling)


def _list_facts(entry: ReportQuestion) -> list[Any]:
    """Return the facts in the order in which report.js reads them."""
    label, question = entry.label, entry.question
    disease = question.rare_disease or (question.provenance.entity if question.provenance else None) or ""
    row: list[Any] = [question.id, entry.position, int(question.rare), disease, entry.truth or ""]
    if label is None:
        return row
    shares = [round(label.confidence_requested[0], 4), round(label.confidence_valid[0], 4)]
    return [*row, label.outcome, label.answer or "", label.taken, int(label.kept), *shares, entry.letters, label.reason]


def _list_wording(entry: ReportQuestion) -> list[Any]:
    """Return stem, options and origin in the order in which report.js reads them."""
    question, origin = entry.question, entry.question.provenance
    row: list[Any] = [question.stem, list(question.options.values())]
    if origin:
        names = [origin.answered_by or origin.teacher, list(origin.passage_ids)]
        row += [origin.index, *names, list(origin.seed_ids), round(origin.rho, 4), question.topic]
    return row


def _measure_segment(votes: Path, number: int) -> int:
    """Return the bytes of a segment, unpacked."""
    plain, packed = vote_segment(votes, number), packed_vote_segment(votes, number)
    if plain.exists():
        return plain.stat().st_size
    with gzip.open(packed, "rb") as file:
        return file.seek(0, 2)


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file that another process may be writing; none where there is no file."""
    return follow(file, ended=lambda: True) if file.exists() else iter(())


def name_vote_file(run: RunPaths, position: int) -> str:
    """Return the file with the votes on the question at `position`, relative to the run directory."""
    number = find_segment(position)
    file = vote_segment(run.voting.votes, number)
    return str((file if file.exists() else packed_vote_segment(run.voting.votes, number)).relative_to(run.root))
