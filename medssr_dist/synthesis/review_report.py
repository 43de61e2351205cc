"""What a physician found: the filled-in review.csv is read back, and its judgements become shares with intervals.

The file is read as spreadsheet programs save it: with or without a byte order mark, with commas, semicolons or tabs,
with any line ends. A judgement is yes, y, true, 1 or x, or no, n, false or 0; an empty cell is no judgement. Whatever
cannot be read is listed by its row and left out. Rows are counted as in a spreadsheet: the head is row 1.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.data.jsonl import read_bytes
from medssr_dist.data.records import Label, Question, Record, parse_record, read_record
from medssr_dist.data.wilson import Share, format_percent, measure_share
from medssr_dist.errors import InputError
from medssr_dist.run.stream import follow
from medssr_dist.synthesis.review import JUDGEMENTS, LETTER_COLUMN, make_cell

_YES = {"yes", "y", "true", "1", "x"}
_NO = {"no", "n", "false", "0"}
_LETTER = re.compile(r"[\s(]*([A-J])[\s).:]*", re.IGNORECASE)
_DELIMITERS = (",", ";", "\t")
_NEEDED = ("id", *JUDGEMENTS, LETTER_COLUMN)


class RowProblem(BaseModel):
    """A row of the sheet that cannot be used, and why. Example: RowProblem(row=7, problem="id = 'x' is no ...")"""

    model_config = ConfigDict(frozen=True)
    row: int
    problem: str


class KindReview(BaseModel):
    """The judgements on the questions of one kind.

    Attributes:
        judgements: of each yes/no column, the share of yes.
        all_yes: of the questions with every yes/no column filled in, those with yes in all of them.
        label_agrees: of the kept pseudo-labels of questions with a letter, those that are this letter.
    """

    model_config = ConfigDict(frozen=True)
    judgements: dict[str, Share]
    all_yes: Share
    label_agrees: Share


class ReviewReport(Record):
    """The content of review.json.

    Example: ReviewReport(file="review.csv", rows=50, used=47, empty_rows=(4, 9), problems=(RowProblem(row=12, ...),),
    by_kind={"all": KindReview(...), "rare": KindReview(...), "common": KindReview(...)})
    """

    file: str
    rows: int = Field(description="rows of the sheet, without the head")
    used: int = Field(description="rows with a judgement that could be read")
    empty_rows: tuple[int, ...] = Field(description="rows without any judgement")
    problems: tuple[RowProblem, ...]
    by_kind: dict[str, KindReview] = Field(description="all, rare, common")


def read_review_report(file: Path) -> ReviewReport | None:
    """Read review.json; None if there is none. Raises InputError if it is not a report."""
    return read_record(ReviewReport, file) if file.exists() else None


def evaluate_review(sheet: Path, questions: Path, labels: Path) -> ReviewReport:
    """Evaluate a filled-in sheet.

    Args:
        sheet: the CSV file.
        questions: questions.jsonl of the run.
        labels: labeled.jsonl of the run, which need not exist.

    Raises:
        InputError: the file is not such a sheet, or no row of it has a judgement that can be read.
    """
    rows = read_sheet(sheet)
    reader = _SheetReader(_read_questions(questions))
    for number, row in enumerate(rows, start=2):
        reader.read(number, row)
    if not reader.reviews:
        first = "".join(f"; row {each.row}: {each.problem}" for each in reader.problems[:1])
        raise InputError(
            f"{sheet}: none of its {len(rows):,} rows has a judgement that can be read; fill in the columns "
            f"{', '.join(JUDGEMENTS)} with yes or no{first}"
        )
    kept = _read_kept_answers(labels)
    kinds = {
        "all": reader.reviews,
        "rare": [each for each in reader.reviews if each.question.rare],
        "common": [each for each in reader.reviews if not each.question.rare],
    }
    return ReviewReport(
        file=sheet.name,
        rows=len(rows),
        used=len(reader.reviews),
        empty_rows=tuple(reader.empty),
        problems=tuple(reader.problems),
        by_kind={kind: _measure_kind(reviews, kept) for kind, reviews in kinds.items()},
    )


def is_filled_in(sheet: Path) -> bool:
    """Return whether a physician has written into the sheet `sheet`. True also for a file that cannot be read."""
    if not sheet.exists():
        return False
    try:
        return any(row[name] for row in read_sheet(sheet) for name in (*JUDGEMENTS, LETTER_COLUMN, "comment"))
    except (InputError, KeyError):
        return True


def read_sheet(sheet: Path) -> list[dict[str, str]]:
    """Return the rows of a review sheet, column -> stripped text; a cell that is absent is "".

    Raises:
        InputError: the file cannot be read, or a column is missing.
    """
    text = _decode(sheet)
    if text.lower().startswith("sep="):  # Excel's hint at the delimiter
        text = text.partition("\n")[2]
    for delimiter in _DELIMITERS:
        head, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) or [[]]
        names = [name.strip().casefold() for name in head]
        if "id" in names and len(names) > 1:
            break
    else:
        raise InputError(f"{sheet} is no review sheet: no column 'id' in its first row; save review.csv as CSV again")
    if missing := [name for name in _NEEDED if name not in names]:
        raise InputError(f"{sheet} has no column {missing[0]!r}; fill in the review.csv of the run, with its columns")
    filled = [
        dict.fromkeys([*names, "comment"], "") | dict(zip(names, map(str.strip, row), strict=False)) for row in rows
    ]
    while filled and not any(filled[-1].values()):
        filled.pop()
    return filled


def _decode(sheet: Path) -> str:
    data = read_bytes(sheet)
    if data.startswith(b"PK"):
        raise InputError(f"{sheet} is a workbook, not CSV; save it as CSV (UTF-8) in the spreadsheet program")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:  # Excel's plain CSV; what is read back, ids and judgements, is ASCII
        return data.decode("cp1252", "replace")


@dataclass(frozen=True)
class _Reviewed:
    """A question with its judgements (column -> yes or no) and the letter that the physician gave, if any."""

    question: Question
    judgements: Mapping[str, bool]
    letter: str | None


@dataclass
class _SheetReader:
    """Reads row after row; collects reviews, empty rows and problems."""

    questions: Mapping[str, Question]
    reviews: list[_Reviewed] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_stem = {_squeeze(make_cell(question.stem)): question for question in self.questions.values()}
        self._row_of: dict[str, int] = {}

    def read(self, number: int, row: Mapping[str, str]) -> None:
        """Take one row of the sheet."""
        if not any(row[name] for name in (*JUDGEMENTS, LETTER_COLUMN)):
            self.empty.append(number)
            return
        # A spreadsheet program may turn an id such as 12e4567890123456 into a number; the stem is the same.
        question = self.questions.get(row["id"]) or self._by_stem.get(_squeeze(row.get("stem", "")))
        if question is None:
            self._report(number, f"id = {row['id']!r} is no question of the run")
        elif question.id in self._row_of:
            self._report(number, f"it is the same question as row {self._row_of[question.id]}")
        else:
            self._row_of[question.id] = number
            self._read_judgements(number, row, question)

    def _read_judgements(self, number: int, row: Mapping[str, str], question: Question) -> None:
        judgements = {}
        for name in filter(row.get, JUDGEMENTS):
            text = row[name].casefold()
            if text in _YES or text in _NO:
                judgements[name] = text in _YES
            else:
                self._report(number, f"{name} = {row[name]!r} is not yes, no, 1, 0 or x")
        found = _LETTER.fullmatch(row[LETTER_COLUMN])
        letter = found[1].upper() if found else None
        if row[LETTER_COLUMN] and letter not in question.options:
            self._report(
                number, f"{LETTER_COLUMN} = {row[LETTER_COLUMN]!r} is not one of {', '.join(question.options)}"
            )
            letter = None
        if judgements or letter:
            self.reviews.append(_Reviewed(question, judgements, letter))

    def _report(self, number: int, problem: str) -> None:
        self.problems.append(RowProblem(row=number, problem=problem))


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _read_questions(file: Path) -> dict[str, Question]:
    if not file.exists():
        raise InputError(f"{file} does not exist; name the directory of a run that has questions")
    rows = follow(file, ended=lambda: True)
    return {question.id: question for question in (parse_record(Question, row, str(file)) for row in rows)}


def _read_kept_answers(labels: Path) -> dict[str, str]:
    """Return question id -> letter of the kept pseudo-labels."""
    rows = (parse_record(Label, row, str(labels)) for row in follow(labels, ended=lambda: True))
    return {label.question.id: label.answer for label in rows if label.kept and label.answer}


def _measure_kind(reviews: list[_Reviewed], kept: Mapping[str, str]) -> KindReview:
    complete = [each for each in reviews if len(each.judgements) == len(JUDGEMENTS)]
    labelled = [each for each in reviews if each.letter and each.question.id in kept]
    answered = {name: [each.judgements[name] for each in reviews if name in each.judgements] for name in JUDGEMENTS}
    return KindReview(
        judgements={name: measure_share(sum(found), len(found)) for name, found in answered.items()},
        all_yes=measure_share(sum(all(each.judgements.values()) for each in complete), len(complete)),
        label_agrees=measure_share(sum(kept[each.question.id] == each.letter for each in labelled), len(labelled)),
    )


class ReviewRow(BaseModel):
    """A row of the table: what was judged, and the share of yes by kind of question.

    Example: ReviewRow(name="medically_sound", shares={"all": Share(...), "rare": Share(...), "common": Share(...)})
    """

    model_config = ConfigDict(frozen=True)
    name: str
    shares: dict[str, Share]


def list_review_rows(report: ReviewReport) -> Iterator[ReviewRow]:
    """Yield the rows of the table: each judgement, all of them, and whether the pseudo-label agrees."""
    kinds = report.by_kind
    for name in JUDGEMENTS:
        yield ReviewRow(name=name, shares={kind: found.judgements[name] for kind, found in kinds.items()})
    yield ReviewRow(name="yes in all three", shares={kind: found.all_yes for kind, found in kinds.items()})
    yield ReviewRow(name="kept pseudo-label is right", shares={kind: f.label_agrees for kind, f in kinds.items()})


def format_review_share(share: Share) -> str:
    """Return a share with its 95% interval, for example '40 of 47, 85.1% (72.3% to 92.6%)'; '-' for no judgement."""
    if not share.of:
        return "-"
    interval = f"{format_percent(share.low)} to {format_percent(share.high)}"
    return f"{share.count:,} of {share.of:,}, {format_percent(share.share)} ({interval})"
