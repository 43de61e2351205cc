"""The filled-in review sheet is read back, as spreadsheet programs save it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from stream_parts import label as make_label

from medssr_dist.data.records import Provenance, Question
from medssr_dist.data.wilson import measure_share
from medssr_dist.errors import InputError
from medssr_dist.synthesis.review import COLUMNS, JUDGEMENTS, write_review
from medssr_dist.synthesis.review_report import evaluate_review, is_filled_in

YES = dict.fromkeys(JUDGEMENTS, "yes")


def question(number: int, rare: bool = False) -> Question:
    provenance = Provenance(
        index=number, prompt_hash="h", seed_ids=("a", "b"), rho=0.1, teacher="t", random_seed=1, commit="c"
    )
    stem = f"=Question {number};\nwith two lines, and an \u00e9?"
    return Question.make(stem, ["one", "two", "three"], source="synthetic", rare=rare, provenance=provenance)


QUESTIONS = [question(number, rare=number % 2 == 0) for number in range(6)]


@pytest.fixture
def sheet(tmp_path):
    """Return a function that fills in rows of a sheet and saves it as a spreadsheet program does."""
    (tmp_path / "questions.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in QUESTIONS))
    write_review(tmp_path / "questions.jsonl", tmp_path / "review.csv", 6, 1, str)

    def fill(*changes, delimiter=",", encoding="utf-8-sig", ends="\r\n", quoting=csv.QUOTE_MINIMAL, head=""):
        rows = list(csv.DictReader(io.StringIO((tmp_path / "review.csv").read_text("utf-8-sig"), newline="")))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, delimiter=delimiter, lineterminator=ends, quoting=quoting)
        writer.writeheader()
        for row, change in zip(rows, [*changes, *[{}] * len(rows)], strict=False):
            writer.writerow(row | change)
        file = tmp_path / "returned.csv"
        file.write_bytes((head + text.getvalue()).encode(encoding))
        return file

    return fill


@pytest.fixture
def evaluate(tmp_path):
    return lambda file: evaluate_review(file, tmp_path / "questions.jsonl", tmp_path / "labeled.jsonl")


FORMS = {
    "as written": {"quoting": csv.QUOTE_ALL},
    "LibreOffice": {"encoding": "utf-8", "ends": "\n"},
    "Excel, German": {"delimiter": ";"},
    "Excel, plain CSV": {"delimiter": ";", "encoding": "cp1252"},
    "Excel, Unicode text": {"delimiter": "\t", "encoding": "utf-16"},
    "with a hint": {"delimiter": ";", "head": "sep=;\r\n", "encoding": "utf-8"},
    "old Macintosh": {"ends": "\r", "quoting": csv.QUOTE_ALL},
}


@pytest.mark.parametrize("form", FORMS)
def test_sheets_of_spreadsheet_programs(sheet, evaluate, form):
    rows = [
        YES | {"correct_letter": "b"},
        {"one_correct_answer": "1", "medically_sound": "0", "answerable_without_figure": "x"},
        {"one_correct_answer": " No ", "medically_sound": "TRUE", "comment": "line one\nline two; and more"},
        {},
        {"comment": "nothing to say"},
        {"correct_letter": "(C)"},
    ]
    report = evaluate(sheet(*rows, **FORMS[form]))
    assert (report.rows, report.used, report.empty_rows, report.problems) == (6, 4, (5, 6), ())
    whole = report.by_kind["all"]
    assert whole.judgements["one_correct_answer"] == measure_share(2, 3)
    assert whole.judgements["medically_sound"] == measure_share(2, 3)
    assert whole.judgements["answerable_without_figure"] == measure_share(2, 2)
    assert whole.all_yes == measure_share(1, 2)
    assert report.by_kind["rare"].all_yes == measure_share(1, 1)
    assert report.by_kind["common"].all_yes == measure_share(0, 1)


def test_what_cannot_be_read_is_named_by_row(sheet, evaluate):
    rows = [
        YES | {"medically_sound": "maybe"},
        {"id": "ffff", "stem": "Another question?"} | YES,
        {"correct_letter": "D"} | YES,
        {"correct_letter": "A, B"},
        {"id": QUESTIONS[0].id, "stem": ""} | YES,
    ]
    report = evaluate(sheet(*rows))
    assert {each.row: each.problem for each in report.problems} == {
        2: "medically_sound = 'maybe' is not yes, no, 1, 0 or x",
        3: "id = 'ffff' is no question of the run",
        4: "correct_letter = 'D' is not one of A, B, C",
        5: "correct_letter = 'A, B' is not one of A, B, C",
        6: "it is the same question as row 2",
    }
    assert (report.used, report.empty_rows) == (2, (7,))
    assert report.by_kind["all"].judgements["one_correct_answer"] == measure_share(2, 2)
    assert report.by_kind["all"].judgements["medically_sound"] == measure_share(1, 1)


def test_an_id_that_became_a_number_is_found_by_its_stem(sheet, evaluate):
    report = evaluate(sheet({"id": "1.2E+19"} | YES))
    assert report.used == 1 and not report.problems


def test_kept_labels_are_compared_with_the_physicians_letter(tmp_path, sheet, evaluate):
    labels = [make_label(each, kept=number != 2) for number, each in enumerate(QUESTIONS)]  # all say A
    (tmp_path / "labeled.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in labels))
    report = evaluate(sheet(*({"correct_letter": letter} for letter in "AABA")))
    assert report.by_kind["all"].label_agrees == measure_share(3, 3)  # the label of the third is not kept
    assert report.by_kind["rare"].label_agrees == measure_share(1, 1)


def test_what_is_no_filled_in_sheet_is_refused(tmp_path, sheet, evaluate):
    with pytest.raises(InputError, match="none of its 6 rows has a judgement"):
        evaluate(sheet())
    with pytest.raises(InputError, match="none of its 6 rows .*row 2: medically_sound = 'maybe'"):
        evaluate(sheet({"medically_sound": "maybe"}))
    for text, named in (
        ("", "no column 'id'"),
        ("a,b\n1,2\n", "no column 'id'"),
        ("id,stem\n1,2\n", "has no column 'one_correct_answer'"),
        ("PK\x03\x04", "is a workbook"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(InputError, match=named):
            evaluate(tmp_path / "bad.csv")
    with pytest.raises(InputError, match="absent.csv does not exist"):
        evaluate(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="/dev/zero is a pipe, a socket or a device"):
        evaluate(Path("/dev/zero"))


def test_a_filled_in_sheet_is_recognised(tmp_path, sheet):
    assert not is_filled_in(tmp_path / "absent.csv") and not is_filled_in(tmp_path / "review.csv")
    assert is_filled_in(sheet({"comment": "see me"})) and is_filled_in(sheet(YES))
    (tmp_path / "broken.csv").write_text("PK")
    assert is_filled_in(tmp_path / "broken.csv")  # better kept than overwritten
