"""`medssr merge RUN OTHER...`: votes that other runs took on RUN's questions become RUN's, each once.

Several jobs may vote on copies of one run, each as far as it comes; RUN then takes what it lacks, and the next
`medssr vote` goes on from there. Doing it twice, or in another order, changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from medssr_dist.data.jsonl import enumerate_rows, read_json
from medssr_dist.data.records import Vote
from medssr_dist.errors import InputError
from medssr_dist.run.directory import RunDir, hold_run
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.segments import list_segments, read_votes, segment_number

TAKEN = "taken"
THERE = "there already"
NO_NEED = "on questions that have a label or are not the run's"
OTHER_SEED = "of seeds that the run does not ask"
OTHER_WAY = "of another policy or way of sampling"
_FATES = (TAKEN, THERE, NO_NEED, OTHER_SEED, OTHER_WAY)


def merge_votes(root: Path, others: list[Path]) -> list[Counter[str]]:
    """Take the votes of the runs `others` into the run `root`, and print how many.

    Returns:
        For each of `others`, its votes by what became of them (TAKEN, THERE, ...).
    Raises:
        InputError: `root` has not begun to vote or is in use, one of `others` has no votes, or a line is broken.
    """
    run = RunDir(root)
    sources = [_votes_of(other, run) for other in others]
    identity = _identity(run)
    config = read_json(run.config_file)
    merged = []
    with hold_run(run), VoteLedger(run.voting.folder, *identity, config["voting"]["keep_text"]) as ledger:
        positions = _undecided(run.synthesis.questions, ledger.num_labels)
        asked = (config["runtime"]["random_seed"], config["voting"]["samples"])

        def refused(vote: Vote) -> str | None:
            if (vote.policy, vote.sampling) != identity:
                return OTHER_WAY
            if vote.question_id not in positions:
                return NO_NEED
            return None if vote.seed in derive_seeds(vote.question_id, *asked) else OTHER_SEED

        for other, source in zip(others, sources, strict=True):
            counts = _take(ledger, source, positions, refused)
            print(f"{other}: {', '.join(f'{counts[fate]:,} {fate}' for fate in _FATES)}")
            merged.append(counts)
    return merged


def _votes_of(other: Path, run: RunDir) -> Path:
    folder = RunDir(other).voting.votes
    if folder == run.voting.votes:
        raise InputError(f"{other} is the run itself; name the runs whose votes it is to take")
    if not folder.is_dir():
        raise InputError(f"{other} holds no votes: there is no {folder}; name run directories that have voted")
    return folder


def _identity(run: RunDir) -> tuple[str, str]:
    """Policy and sampling of the run's votes."""
    file = run.voting.ledger
    if not file.exists():
        raise InputError(
            f"{run.root} has not begun to vote: there is no {file}, which says of which policy and sampling its votes "
            "are; start `medssr vote` on it first (it may be stopped at once)"
        )
    stored = read_json(file)
    return stored["policy"], stored["sampling"]


def _undecided(questions: Path, decided: int) -> dict[str, int]:
    """Id -> position, of the questions from position `decided` on."""
    with open(questions, "rb") as file:
        rows = enumerate(row for _, row in enumerate_rows(file, questions, skip_torn=True))
        return {row["id"]: position for position, row in rows if position >= decided}


def _take(
    ledger: VoteLedger, source: Path, positions: dict[str, int], refused: Callable[[Vote], str | None]
) -> Counter[str]:
    """In memory are one segment of `source` and one of the run, in whatever order `source` has the questions."""
    counts: Counter[str] = Counter()
    for number in tqdm(list_segments(source), desc="merge", unit="segment"):
        votes: list[tuple[int, Vote]] = []
        for vote in read_votes(source, number):
            if reason := refused(vote):
                counts[reason] += 1
            else:
                votes.append((positions[vote.question_id], vote))
        votes.sort(key=lambda pair: pair[0])
        for _, group in groupby(votes, key=lambda pair: segment_number(pair[0])):
            for position, vote in group:
                counts[TAKEN if ledger.add_votes(position, [vote]) else THERE] += 1
            ledger.release()
    return counts
