"""The physician's review sheet: its content, its format, and that the sample is fair."""

import csv
import io
import json
from collections import Counter

import pytest

from medssr_dist.data.records import Provenance, Question
from medssr_dist.data.wilson import wilson_interval
from medssr_dist.synthesis.review import COLUMNS, TO_FILL_IN, write_review


def question(number: int, stem: str = "", options=("one", "two"), entity=None) -> Question:
    provenance = Provenance(
        index=number,
        prompt_hash="h",
        seed_ids=("a", "b"),
        rho=0.1,
        entity=entity,
        passage_ids=("OMIM:1", "OMIM:2") if entity else (),
        teacher="t",
        random_seed=1,
        commit="c",
    )
    stem = stem or f"Question number {number}?"
    return Question.make(stem, list(options), source="synthetic", rare=entity is not None, provenance=provenance)


def sheet_of(tmp_path, questions, count=5, seed=1):
    source, to = tmp_path / "questions.jsonl", tmp_path / "review.csv"
    source.write_text("".join(q.model_dump_json() + "\n" for q in questions), encoding="utf-8")
    write_review(source, to, count, seed, lambda identifier: f"Text of {identifier}.")
    return to.read_bytes()


def rows_of(data: bytes) -> list[dict]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def test_a_row_holds_all_that_is_needed_to_judge(tmp_path):
    item = question(3, "Which drug?\nChoose.", ("nitisinone", 'a "quoted", thing', "é"), entity="Alkaptonuria")
    data = sheet_of(tmp_path, [item])
    assert data.startswith(b"\xef\xbb\xbf")
    row = rows_of(data)[0]
    assert tuple(row) == COLUMNS
    assert (row["id"], row["rare"], row["entity"], row["stem"]) == (item.id, "yes", "Alkaptonuria", item.stem)
    assert [row[letter] for letter in "ABCDJ"] == ["nitisinone", 'a "quoted", thing', "é", "", ""]
    assert row["passages"] == "[OMIM:1] Text of OMIM:1.\n\n[OMIM:2] Text of OMIM:2."
    assert all(row[name] == "" for name in TO_FILL_IN)


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\t=1", "  =HYPERLINK(1)", "\uff1d1"])
def test_no_cell_is_a_formula(tmp_path, text):
    row = rows_of(sheet_of(tmp_path, [question(0, text + " stem", (text, "other"))]))[0]
    assert row["stem"] == "'" + text + " stem"
    assert row["A"] == "'" + text


def test_a_cell_never_outgrows_a_spreadsheet(tmp_path):
    row = rows_of(sheet_of(tmp_path, [question(0, "x" * 40_000)]))[0]
    assert len(row["stem"]) < 32_767 and row["stem"].endswith("(cut)")


def test_a_sheet_of_few_or_no_questions(tmp_path):
    assert len(rows_of(sheet_of(tmp_path, [question(n) for n in range(3)], count=5))) == 3
    assert rows_of(sheet_of(tmp_path, [])) == []
    assert rows_of(sheet_of(tmp_path, [question(1)], count=0)) == []


def test_the_sample_is_seeded_in_file_order_and_fair(tmp_path):
    questions = [question(number) for number in range(40)]
    place = {q.id: number for number, q in enumerate(questions)}
    first = sheet_of(tmp_path, questions, 5, seed=7)
    assert first == sheet_of(tmp_path, questions, 5, seed=7) != sheet_of(tmp_path, questions, 5, seed=8)
    seen = Counter()
    for seed in range(400):
        numbers = [place[row["id"]] for row in rows_of(sheet_of(tmp_path, questions, 5, seed))]
        assert numbers == sorted(numbers) and len(set(numbers)) == 5
        seen.update(numbers)
    assert set(seen) == set(range(40))
    assert max(abs(count - 50) for count in seen.values()) < 35  # 5 standard deviations


def test_a_torn_last_line_is_left_out(tmp_path):
    source, to = tmp_path / "q.jsonl", tmp_path / "review.csv"
    source.write_text(question(0).model_dump_json() + "\n" + json.dumps({"id": "x"})[:5], encoding="utf-8")
    write_review(source, to, 5, 1, str)
    assert len(rows_of(to.read_bytes())) == 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (21500, 43000, 0.4953, 0.5047)],
)
def test_wilson_against_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_a_trial_and_with_bad_counts():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson_interval(3, 2)
