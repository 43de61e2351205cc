"""review.csv: a sample of the accepted questions, with everything that a physician needs to judge them.

No check of the text can decide whether a question is medically sound; a person must. `review_report.py` reads the sheet
back. It is a seeded uniform
sample (reservoir sampling: one pass, `count` lines in memory). It opens in spreadsheet programs without conversion:
UTF-8 with a byte order mark, every cell quoted, and no cell that such a program would run as a formula.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

from medssr_dist.data.checksums import LineChecker
from medssr_dist.data.jsonl import open_bytes, write_atomic
from medssr_dist.data.records import LETTERS, Question

JUDGEMENTS = ("one_correct_answer", "medically_sound", "answerable_without_figure")  # to be filled in with yes or no
LETTER_COLUMN = "correct_letter"
TO_FILL_IN = ("one_correct_answer", LETTER_COLUMN, "medically_sound", "answerable_without_figure", "comment")
COLUMNS = ("id", "rare", "entity", "stem", *LETTERS, "passages", *TO_FILL_IN)
_CELL_CHARS = 32_000  # a spreadsheet cell holds at most 32,767 characters
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_review(
    questions_file: Path, to: Path, count: int, random_seed: int, passage_text: Callable[[str], str]
) -> None:
    """Write `count` questions of `questions_file` (all if it has fewer) to `to`, in the order of the file.

    Args:
        questions_file: JSONL of Question; a torn last line is skipped.
        random_seed: the same seed and the same file give the same sheet.
        passage_text: passage id -> text, for the passages in a question's provenance.
    """
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, COLUMNS, restval="", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for line in _sample(questions_file, count, random.Random(random_seed)):
        row = _build_row(Question.model_validate_json(line), passage_text)
        writer.writerow({name: make_cell(text) for name, text in row.items()})
    write_atomic(to, "\ufeff" + sheet.getvalue())


def _sample(path: Path, count: int, rng: random.Random) -> list[bytes]:
    """Return `count` whole lines, each subset equally likely (Vitter 1985, algorithm R)."""
    kept: list[tuple[int, bytes]] = []
    checker = LineChecker(path)
    with open_bytes(path) as file:
        for number, line in enumerate(checker.open(line) or b"" for line in file if line.endswith(b"\n")):
            if number < count:
                kept.append((number, line))
            elif (place := rng.randrange(number + 1)) < count:
                kept[place] = (number, line)
    return [line for _, line in sorted(kept)]


def _build_row(question: Question, passage_text: Callable[[str], str]) -> dict[str, str]:
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


def make_cell(text: str) -> str:
    """Return `text` as a safe cell: cut to the length of a cell, an apostrophe before a leading formula sign."""
    text = text.replace("\0", "").replace("\r\n", "\n")
    if len(text) > _CELL_CHARS:
        text = text[:_CELL_CHARS] + " ... (cut)"
    return "'" + text if text.lstrip(" ").startswith(_FORMULA_STARTS) else text
