"""`medssr merge RUN OTHER...`: add the votes that other runs took on RUN's questions to RUN, each vote once.

Several jobs may vote on copies of one run, each as far as its time allows. RUN then takes the votes that it lacks, and
the next `medssr vote` resumes from there. Merging twice, or in another order, gives the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from medssr_dist.data.jsonl import enumerate_rows, open_bytes
from medssr_dist.data.records import Vote
from medssr_dist.errors import InputError
from medssr_dist.run.directory import RunDir, hold_run
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.voting.ledger import LedgerState, VoteLedger, derive_seeds
from medssr_dist.voting.segments import find_segment, list_segments, read_votes


@dataclass(frozen=True)
class MergeCounts:
    """The votes of one other run, by what was done with them.

    Example: MergeCounts(taken=2, present=2, not_needed=1) is shown as "2 taken, 2 there already, 1 on questions that
    have a label or are not the run's, 0 of seeds that the run does not ask, 0 of another policy or way of sampling".

    Attributes:
        taken: added to the run.
        present: the run had them.
        not_needed: on questions that have a label or that the run does not have.
        other_seed: with seeds that the run does not use.
        other_sampling: of another policy or way of sampling.
    """

    taken: int = 0
    present: int = 0
    not_needed: int = 0
    other_seed: int = 0
    other_sampling: int = 0

    def __str__(self) -> str:
        return (
            f"{self.taken:,} taken, {self.present:,} there already, {self.not_needed:,} on questions that have a label "
            f"or are not the run's, {self.other_seed:,} of seeds that the run does not ask, {self.other_sampling:,} of "
            "another policy or way of sampling"
        )


class _PositionedVote(NamedTuple):
    """A vote, and the position of its question in the run."""

    position: int
    vote: Vote


def merge_votes(root: Path, others: list[Path]) -> list[MergeCounts]:
    """Add the votes of the runs `others` to the run `root`, and print a line for each of them.

    Returns:
        The counts for each of `others`.

    Raises:
        InputError: `root` has not started to vote or is in use, one of `others` has no votes, or a line is broken.
    """
    run = RunDir(root)
    sources = [_find_votes(other, run) for other in others]
    state = _read_state(run)
    config = read_recorded_config(run.root)
    keep_text, samples, random_seed = config.voting.keep_text, config.voting.samples, config.runtime.random_seed
    merged = []
    with hold_run(run), VoteLedger(run.voting.folder, state.policy, state.sampling, keep_text) as ledger:
        positions = _find_undecided(run.synthesis.questions, ledger.num_labels)

        def find_obstacle(vote: Vote) -> str | None:
            """Return the field of MergeCounts for a vote that the run does not need; None for one that it may need."""
            if (vote.policy, vote.sampling) != (state.policy, state.sampling):
                return "other_sampling"
            if vote.question_id not in positions:
                return "not_needed"
            return None if vote.seed in derive_seeds(vote.question_id, random_seed, samples) else "other_seed"

        for other, source in zip(others, sources, strict=True):
            counts = _add_votes(ledger, source, positions, find_obstacle)
            print(f"{other}: {counts}")
            merged.append(counts)
    return merged


def _find_votes(other: Path, run: RunDir) -> Path:
    folder = RunDir(other).voting.votes
    if folder == run.voting.votes:
        raise InputError(f"{other} is the run itself; name the runs whose votes it is to take")
    if not folder.is_dir():
        raise InputError(f"{other} holds no votes: there is no {folder}; name run directories that have voted")
    return folder


def _read_state(run: RunDir) -> LedgerState:
    state = LedgerState.read(run.voting.ledger)
    if state is None:
        raise InputError(
            f"{run.root} has not begun to vote: there is no {run.voting.ledger}, which names the policy and the way of "
            "sampling of its votes; start `medssr vote` on it first (it may be stopped at once)"
        )
    return state


def _find_undecided(questions: Path, num_labels: int) -> dict[str, int]:
    """Return id -> position of the questions without a label: those from position `num_labels` on."""
    with open_bytes(questions) as file:
        rows = enumerate(row for _, row in enumerate_rows(file, questions, skip_torn=True))
        return {row["id"]: position for position, row in rows if position >= num_labels}


def _add_votes(
    ledger: VoteLedger, source: Path, positions: dict[str, int], find_obstacle: Callable[[Vote], str | None]
) -> MergeCounts:
    """Add the votes of the folder `source`, whatever its order of questions.

    Only one segment of `source` and one of the run are in memory at a time.
    """
    counts: Counter[str] = Counter()
    for number in ProgressBar(list_segments(source), desc="merge", unit="segment"):
        votes = []
        for vote in read_votes(source, number):
            if obstacle := find_obstacle(vote):
                counts[obstacle] += 1
            else:
                votes.append(_PositionedVote(positions[vote.question_id], vote))
        votes.sort(key=lambda each: each.position)
        for _, group in groupby(votes, key=lambda each: find_segment(each.position)):
            for position, vote in group:
                counts["taken" if ledger.add_votes(position, [vote]) else "present"] += 1
            ledger.release()
    return MergeCounts(**counts)
