"""`medssr bench answers`: wrong and missed letters of three readers of answers, and the speed of ours.

    medssr bench answers --json FILE [--quick] [--peers-python PYTHON]

`replies.jsonl` holds replies to medical questions that were made for this benchmark, each with its style, its options,
the right letter (or null: the reply has no answer), and, where it has reasoning, the place `final` at which its final
statement begins. The reasoning alone, cut at random places, measures how often a reply without an answer gets one.

The other readers are lm-evaluation-harness's multiple-choice filter and inspect_ai's choice scorer
(requirements/bench-answers.txt). `--peers-python` names a Python that has them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.bench.aims import Aim, at_most, format_aims
from medssr_dist.bench.result_file import write_result
from medssr_dist.data.answers import extract_answer
from medssr_dist.errors import InputError

OURS = "medssr_dist"
_FOLDER = Path(__file__).parent
_CUTS = 20  # places at which the reasoning of a reply is cut
_LONG = 32_000  # characters of a long reply: about 8,000 tokens


@dataclass(frozen=True)
class LabelledReply:
    """A reply with its right reading; `final`: where its final statement begins, None where that is not measured."""

    id: str
    style: str
    options: dict[str, str]
    answer: str | None
    final: int | None
    text: str


@dataclass(frozen=True)
class ReadingCounts:
    """Replies of one style, or all, and how a reader has read them: a wrong letter, or none where there is one."""

    replies: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class ReaderFigures:
    """What one reader made of the labelled replies.

    Attributes:
        total, styles: the counts of all replies and of each style.
        cut_letters: how many replies of all that were cut before their final statement got a letter.
    """

    version: str
    total: ReadingCounts
    styles: dict[str, ReadingCounts]
    cut_letters: int


@dataclass(frozen=True)
class AnswerFigures:
    """All figures of the benchmark.

    Attributes:
        readers: by name. missing: readers that could not be imported, with the reason.
        cut_replies: number of replies that were cut before their final statement.
        replies_per_s: labelled replies that one core reads in a second. long_ms: time for a reply of 32,000 characters.
    """

    readers: dict[str, ReaderFigures]
    missing: dict[str, str]
    cut_replies: int
    replies_per_s: float
    long_ms: float


AIMS: tuple[Aim[AnswerFigures], ...] = (
    Aim("wrong letters, share", "<= 0.005", lambda figures: (_share(figures, "wrong"),), at_most(0.005)),
    Aim("missed letters, share", "<= 0.02", lambda figures: (_share(figures, "missed"),), at_most(0.02)),
    Aim("cut replies that get a letter, share", "<= 0.005", lambda figures: (_cut_share(figures),), at_most(0.005)),
)


def _share(figures: AnswerFigures, kind: str) -> float:
    total = figures.readers[OURS].total
    return float(getattr(total, kind)) / total.replies


def _cut_share(figures: AnswerFigures) -> float:
    return figures.readers[OURS].cut_letters / figures.cut_replies


def bench_answers(json_path: Path, quick: bool = False, peers_python: Path | None = None) -> None:
    """Run the benchmark, write `json_path` and print the tables. `quick`: fewer cuts, rougher timing."""
    figures = measure_answers(peers_python, cuts=2 if quick else _CUTS, rounds=1 if quick else 5)
    write_result(Path(json_path), asdict(figures))
    print("\n".join([*_format_styles(figures), "", *format_aims(AIMS, figures)]))


def measure_answers(peers_python: Path | None = None, cuts: int = _CUTS, rounds: int = 5) -> AnswerFigures:
    """Return the figures of all readers. `cuts`: cuts of each reply. `rounds`: the fastest of them is the speed."""
    replies = load_labelled_replies()
    cut = cut_replies(replies, cuts)
    letters = {OURS: ("", [extract_answer(reply.text, reply.options).letter for reply in replies + cut])}
    found = _run_peers(replies + cut, peers_python)
    letters |= {name: (result["version"], result["letters"]) for name, result in found.items() if "letters" in result}
    readers = {name: _count(version, replies, cut, read) for name, (version, read) in letters.items()}
    missing = {name: result["missing"] for name, result in found.items() if "missing" in result}
    return AnswerFigures(readers, missing, len(cut), *_measure_speed(replies, rounds))


def load_labelled_replies() -> list[LabelledReply]:
    """Return the labelled replies of `replies.jsonl`."""
    with open(_FOLDER / "replies.jsonl", encoding="utf-8") as lines:
        return [LabelledReply(**json.loads(line)) for line in lines]


def cut_replies(replies: Sequence[LabelledReply], cuts: int) -> list[LabelledReply]:
    """Return each reply with a marked final statement, cut `cuts` times at random places before it; none has an answer.

    Replies that are shorter before their final statement have fewer places.
    """
    rng = random.Random(0)
    result = []
    for reply in replies:
        if reply.final is None:
            continue
        places = rng.sample(range(10, reply.final), min(cuts, reply.final - 10))
        result += [
            LabelledReply(f"{reply.id}-{place}", reply.style, reply.options, None, None, reply.text[:place])
            for place in places
        ]
    return result


def _run_peers(replies: Sequence[LabelledReply], python: Path | None) -> dict[str, Any]:
    asked = json.dumps([{"text": reply.text, "options": reply.options} for reply in replies])
    command = [str(python or sys.executable), str(_FOLDER / "peer_readers.py")]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    except OSError as error:
        raise InputError(f"--peers-python {command[0]} does not start: {error}; name a Python") from None
    return dict(json.loads(done.stdout))


def _count(
    version: str, replies: Sequence[LabelledReply], cut: Sequence[LabelledReply], letters: Sequence[str | None]
) -> ReaderFigures:
    pairs = list(zip(replies, letters, strict=False))
    styles = {
        style: _compare([pair for pair in pairs if pair[0].style == style])
        for style in dict.fromkeys(reply.style for reply in replies)
    }
    in_cut = letters[len(replies) :]
    return ReaderFigures(version, _compare(pairs), styles, sum(letter is not None for letter in in_cut))


def _compare(pairs: Sequence[tuple[LabelledReply, str | None]]) -> ReadingCounts:
    wrong = sum(letter is not None and letter != reply.answer for reply, letter in pairs)
    missed = sum(letter is None and reply.answer is not None for reply, letter in pairs)
    return ReadingCounts(len(pairs), wrong, missed)


def _measure_speed(replies: Sequence[LabelledReply], rounds: int) -> tuple[float, float]:
    """Return the replies that a core reads in a second, and the milliseconds for a long reply; the fastest round."""
    reasoning = " ".join(reply.text[: reply.final] for reply in replies if reply.final)
    long = (reasoning * (_LONG // len(reasoning) + 1))[:_LONG] + "\nThe answer is (B)."
    seconds, long_seconds = [], []
    for _ in range(rounds):
        start = time.process_time()
        for reply in replies:
            extract_answer(reply.text, reply.options)
        seconds.append(time.process_time() - start)
        start = time.process_time()
        for _ in range(10):
            extract_answer(long, {"A": "iron", "B": "zinc"})
        long_seconds.append((time.process_time() - start) / 10)
    return len(replies) / min(seconds), 1000 * min(long_seconds)


def _format_styles(figures: AnswerFigures) -> list[str]:
    """Return the table of wrong and missed letters by style."""
    names = list(figures.readers)
    lines = [f"{'wrong / missed':<16}{'replies':>9}" + "".join(f"{name:>16}" for name in names)]
    for style, counts in figures.readers[OURS].styles.items():
        cells = [figures.readers[name].styles[style] for name in names]
        lines.append(f"{style:<16}{counts.replies:>9}" + "".join(f"{c.wrong:>9} / {c.missed:<4}" for c in cells))
    totals = [figures.readers[name] for name in names]
    total = totals[0].total.replies
    lines.append(f"{'all':<16}{total:>9}" + "".join(f"{t.total.wrong:>9} / {t.total.missed:<4}" for t in totals))
    lines.append(
        f"{'cut, letters':<16}{figures.cut_replies:>9}" + "".join(f"{t.cut_letters:>9}{'':<7}" for t in totals)
    )
    lines += [f"{name}: missing ({reason})" for name, reason in figures.missing.items()]
    return [*lines, f"{figures.replies_per_s:,.0f} replies/s on one core; a long reply: {figures.long_ms:.2f} ms"]
