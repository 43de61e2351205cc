"""Writes votes and labels into a vote ledger; also a script, which tests kill or give a full disk."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from stored_votes import stored_votes

from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths
from medssr_dist.voting import segments
from medssr_dist.voting.ledger import VoteLedger

K = 4
TEXT = "The patient é\u2028 has it. "  # str.splitlines would split at U+2028, which does not end a line of JSON


def question(position: int) -> Question:
    return Question.make(f"Question {position}?", ["one", "two", "three"], source="set")


def vote(position: int, seed: int = 0, policy: str = "p", sampling: str = "s", text: str = "") -> Vote:
    """A vote that depends on its key alone."""
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


def seeds(ledger: VoteLedger, position: int) -> list[int]:
    """Seeds of the votes that the ledger has on a question."""
    return sorted(ledger.known_votes(position, question(position)))


def fill(folder: Path, questions: int, labels: int | None = None, **identity: str) -> None:
    """Write K votes on each of `questions` questions, and the first `labels` labels (None = all)."""
    with VoteLedger(folder, identity.get("policy", "p"), identity.get("sampling", "s")) as ledger:
        for position in range(questions):
            ledger.add_votes(position, [vote(position, seed, **identity) for seed in range(K)])
        for position in range(ledger.num_labels, questions if labels is None else labels):
            ledger.add_label(position, label(position, **identity))


def names(folder: Path) -> list[str]:
    """Names of the files of votes."""
    return sorted(file.name for file in VotingPaths(folder).votes.iterdir())


def keep_lines(file: Path, count: int, rest: bytes = b"") -> None:
    """Cut `file` after its first `count` lines, and append `rest`."""
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:count]) + rest)


def write(folder: Path, questions: int, rng: random.Random) -> None:
    """Vote on all questions, several at a time; after each commit print position:seed of the new votes on disk."""
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
    """Write until the disk is full, free some space, and resume; print the ledger's error."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    for _ in range(2):
        try:
            write(folder, questions, random.Random(0))
        except InputError as error:
            print(f"error: {error}")
            print(f"complete lines: {len(stored_votes(folder))}")
            ballast.unlink()
    keys = [vote.key for vote in stored_votes(folder)]
    print(f"votes: {len(keys)}, distinct: {len(set(keys))}")


if __name__ == "__main__":
    segments.SEGMENT_QUESTIONS = 8
    todo, place, count, seed = sys.argv[1:]
    if todo == "fill":
        fill_a_disk(Path(place), int(count))
    else:
        write(Path(place), int(count), random.Random(seed))
