"""review.csv: a sample of the accepted questions, with what a physician needs to judge them.

No check of text can say whether a question is sound medicine; a person must. The sheet is a seeded
sample (reservoir sampling: one pass, `count` lines in memory, each question as likely as any other) that
opens in spreadsheet programs as it is: UTF-8 with a byte order mark, every cell quoted, and no cell that
such a program would run as a formula.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

from medssr_dist.data.jsonl import write_atomic
from medssr_dist.data.records import LETTERS, Question

TO_FILL_IN = ("one_correct_answer", "correct_letter", "medically_sound", "answerable_without_figure", "comment")
COLUMNS = ("id", "rare", "entity", "stem", *LETTERS, "passages", *TO_FILL_IN)
_CELL_CHARS = 32_000  # a spreadsheet cell holds 32,767 characters
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_review(
    questions_file: Path, to: Path, count: int, random_seed: int, passage_text: Callable[[str], str]
) -> None:
    """Write `count` questions of `questions_file` (all, if it holds fewer) to `to`, in the file's order.

    Args:
        questions_file: Question JSONL; a torn last line is left out.
        random_seed: the same seed and file give the same sheet.
        passage_text: passage id -> its text, for the passages a question's provenance names.
    """
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, COLUMNS, restval="", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for line in _sample(questions_file, count, random.Random(random_seed)):
        row = _row(Question.model_validate_json(line), passage_text)
        writer.writerow({name: _cell(text) for name, text in row.items()})
    write_atomic(to, "\ufeff" + sheet.getvalue())


def _sample(path: Path, count: int, rng: random.Random) -> list[bytes]:
    """`count` whole lines, each subset equally likely (Vitter 1985, algorithm R)."""
    kept: list[tuple[int, bytes]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(line for line in file if line.endswith(b"\n")):
            if number < count:
                kept.append((number, line))
            elif (place := rng.randrange(number + 1)) < count:
                kept[place] = (number, line)
    return [line for _, line in sorted(kept)]


def _row(question: Question, passage_text: Callable[[str], str]) -> dict[str, str]:
    source = question.provenance
    passages = source.passage_ids if source else ()
    return {
        "id": question.id,
        "rare": "yes" if question.rare else "no",
        "entity": (source and source.entity) or "",
        "stem": question.stem,
        **question.options,
        "passages": "\n\n".join(f"[{identifier}] {passage_text(identifier)}" for identifier in passages),
    }


def _cell(text: str) -> str:
    """`text` as one harmless cell: cut to what a cell holds, a leading formula sign disarmed by an apostrophe."""
    text = text.replace("\0", "").replace("\r\n", "\n")
    if len(text) > _CELL_CHARS:
        text = text[:_CELL_CHARS] + " ... (cut)"
    return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text
