"""Writes votes and labels of small questions into a vote ledger; run as a script, to be killed or to fill a disk."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.voting import segments
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.segments import list_segments, read_votes

K = 4
TEXT = "The patient é\u2028 has it. "  # what str.splitlines would cut is no end of a line


def question(position: int) -> Question:
    return Question.make(f"Question {position}?", ["one", "two", "three"], source="set")


def vote(position: int, seed: int = 0, policy: str = "p", sampling: str = "s", text: str = "") -> Vote:
    """The vote of a key is the same wherever it is drawn."""
    answer = random.Random(f"{position} {seed}").choice(["A", "B", "C", None])
    found = {"answer": answer, "method": answer and "statement", "tokens": seed + 1, "truncated": answer is None}
    return Vote(question_id=question(position).id, policy=policy, sampling=sampling, seed=seed, text=text, **found)


def label(position: int, policy: str = "p", sampling: str = "s") -> Label:
    return Label(
        question=question(position),
        outcome="labeled",
        answer="A",
        counts={"A": K},
        requested=K,
        taken=K,
        valid=K,
        truncated=0,
        tokens=9,
        confidence_requested=(1, 1),
        confidence_valid=(1, 1),
        kept=position % 3 == 0,
        policy=policy,
        sampling=sampling,
    )


def stored(folder: Path) -> list[Vote]:
    """All votes on disk, of whatever policy."""
    votes = folder / "votes"
    return [vote for number in list_segments(votes) for vote in read_votes(votes, number)]


def seeds(ledger: VoteLedger, position: int) -> list[int]:
    """Of the votes that the ledger has for a question."""
    return sorted(ledger.known_votes(position, question(position)))


def fill(folder: Path, questions: int, labels: int | None = None, **identity: str) -> None:
    """`questions` with K votes each, `labels` of them with their label."""
    with VoteLedger(folder, identity.get("policy", "p"), identity.get("sampling", "s")) as ledger:
        for position in range(questions):
            ledger.add_votes(position, [vote(position, seed, **identity) for seed in range(K)])
        for position in range(ledger.num_labels, questions if labels is None else labels):
            ledger.add_label(position, label(position, **identity))


def names(folder: Path) -> list[str]:
    """Files of the votes."""
    return sorted(file.name for file in (folder / "votes").iterdir())


def keep_lines(file: Path, count: int, rest: bytes = b"") -> None:
    """Cut `file` after its first lines."""
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:count]) + rest)


def write(folder: Path, questions: int, rng: random.Random) -> None:
    """Vote on all questions, several at a time, and say after each commit what is on disk now: position, seed."""
    with VoteLedger(folder, "p", "s") as ledger:
        while ledger.num_labels < questions:
            window = range(ledger.num_labels, min(questions, ledger.num_labels + 6))
            missing = [(i, s) for i in window for s in range(K) if s not in ledger.known_votes(i, question(i))]
            new = rng.sample(missing, min(len(missing), 7))
            for position, seed in new:
                ledger.add_votes(position, [vote(position, seed, text=TEXT * rng.randrange(40))])
            while ledger.num_labels < questions and seeds(ledger, ledger.num_labels) == [*range(K)]:
                ledger.add_label(ledger.num_labels, label(ledger.num_labels))
            ledger.commit()
            print(*(f"{position}:{seed}" for position, seed in new), ledger.num_labels, flush=True)


def fill_a_disk(folder: Path, questions: int) -> None:
    """Write until the disk is full, make room, and go on; print what the ledger said."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    for _ in range(2):
        try:
            write(folder, questions, random.Random(0))
        except InputError as error:
            print(f"told: {error}")
            print(f"whole lines: {len(stored(folder))}")
            ballast.unlink()
    keys = [vote.key for vote in stored(folder)]
    print(f"votes: {len(keys)}, distinct: {len(set(keys))}")


if __name__ == "__main__":
    segments.SEGMENT_QUESTIONS = 8
    todo, place, count, seed = sys.argv[1:]
    if todo == "fill":
        fill_a_disk(Path(place), int(count))
    else:
        write(Path(place), int(count), random.Random(seed))
