"""Validation questions that are training questions, seeds or benchmark items are refused, and those without answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_builder import make_config

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_calibration_questions, read_validation_questions, refuse_shared


def make_question(stem: str, source_id: str = "", truth: str | None = "A") -> Question:
    return Question.make(stem, ["Alkaptonuria", "Fabry disease"], source="own", source_id=source_id, truth=truth)


def write(file: Path, *questions: Question) -> str:
    file.write_text("".join(json.dumps(question.model_dump(mode="json")) + "\n" for question in questions))
    return str(file)


@pytest.fixture
def read(tmp_path):
    """Read validation questions beside a set of another use."""

    def call(held_out: list[Question], **others: list[Question]) -> list[Question]:
        files = {name: [write(tmp_path / f"{name}.jsonl", *questions)] for name, questions in others.items()}
        seeds = files.get("seeds", [write(tmp_path / "s.jsonl", make_question("A seed", "s"))])
        stage2 = {"enabled": True, "data": files.get("stage2", [write(tmp_path / "t.jsonl", make_question("T", "t"))])}
        validate = {"data": [write(tmp_path / "held.jsonl", *held_out)]}
        config = make_config(
            synthesis={"seeds": seeds},
            training={"validate": validate, "stage2": stage2},
            evaluation={"benchmarks": files.get("benchmarks", [])},
        )
        return read_validation_questions(config)

    return call


def test_without_validation_there_are_no_questions():
    assert read_validation_questions(make_config()) == []


def test_other_questions_pass(read):
    held_out = [make_question("Black urine", "1"), make_question("Burning feet", "2")]
    assert read(held_out, stage2=[make_question("Red urine", "3")]) == held_out


@pytest.mark.parametrize(
    ("use", "key"),
    [("seeds", "synthesis.seeds"), ("stage2", "training.stage2.data"), ("benchmarks", "evaluation.benchmarks")],
)
def test_a_question_of_another_use_is_refused(read, use, key):
    held_out = [make_question("Black urine", "1"), make_question("Burning feet", "2")]
    with pytest.raises(InputError) as caught:
        read(held_out, **{use: [make_question("BLACK  urine?", "77")]})
    expected = f"training.validate.data: 1 of 2 questions are also in {key}: own:1 is own:77; remove them"
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_question_without_an_answer_is_refused(read):
    with pytest.raises(InputError, match=r"training.validate.data: 1 of 2 questions have no answer, e.g. own:2"):
        read([make_question("Black urine", "1"), make_question("Burning feet", "2", truth=None)])


def test_the_question_of_the_same_disease_is_refused():
    """In sets with one question for each disease, an entry of OMIM and one of Orphanet are one disease."""
    held_out = [make_question("A boy with dark urine", "OMIM:203500")]
    with pytest.raises(InputError, match=r"own:OMIM:203500 is own:ORPHA:56"):
        refuse_shared(held_out, {"evaluation.benchmarks": [make_question("Blue sclerae", "ORPHA:56")]})
    refuse_shared(held_out, {"evaluation.benchmarks": [make_question("Burning feet", "ORPHA:324")]})


def test_other_patients_with_a_disease_pass():
    """In the mini sets a disease has many questions, one for each patient."""
    refuse_shared([make_question("One", "ORPHA:56/aa11")], {"synthesis.seeds": [make_question("Two", "ORPHA:56/bb22")]})


def test_the_embedded_sets_are_told_apart():
    settings = {"validate": {"data": [{"path": "hpo:supervised", "limit": 4}]}}
    stage2 = {"enabled": True, "data": [{"path": "hpo:supervised", "limit": 2}]}
    config = make_config(synthesis={"seeds": [{"path": "hpo:seeds", "limit": 2}]}, training=settings)
    assert len(read_validation_questions(config)) == 4
    with pytest.raises(InputError, match=r"2 of 4 questions are also in training.stage2.data: hpo:supervised:ORPHA"):
        read_validation_questions(
            make_config(
                synthesis={"seeds": [{"path": "hpo:seeds", "limit": 2}]}, training=settings | {"stage2": stage2}
            )
        )


# --- calibration of the threshold -------------------------------------------------------------------


def read_slice(tmp_path: Path, questions: list[Question], **others: list[Question]) -> list[Question]:
    files = {name: [write(tmp_path / f"{name}.jsonl", *items)] for name, items in others.items()}
    config = make_config(
        voting={"calibrate": {"data": [write(tmp_path / "slice.jsonl", *questions)]}},
        synthesis={"seeds": files.get("seeds", [write(tmp_path / "s.jsonl", make_question("A seed", "s"))])},
        training={
            "stage1": {"enabled": False},
            "stage2": {"enabled": True, "data": files.get("stage2", [write(tmp_path / "t.jsonl", make_question("T"))])},
        },
        evaluation={"benchmarks": files.get("benchmarks", [])},
    )
    return read_calibration_questions(config)


def test_a_calibration_slice_of_its_own_is_read(tmp_path):
    questions = [make_question("One"), make_question("Two")]
    assert read_slice(tmp_path, questions) == questions


@pytest.mark.parametrize("use", ["seeds", "stage2", "benchmarks"])
def test_a_calibration_slice_that_overlaps_is_refused(tmp_path, use):
    """Also where no stage trains on pseudo-labels: the seeds' questions are voted on all the same."""
    with pytest.raises(InputError, match=r"voting\.calibrate\.data: 1 of 2 questions are also in") as caught:
        read_slice(tmp_path, [make_question("One"), make_question("Two")], **{use: [make_question("two!")]})
    assert {"seeds": "synthesis.seeds", "stage2": "stage2.data", "benchmarks": "evaluation.benchmarks"}[use] in str(
        caught.value
    )


def test_a_calibration_slice_without_answers_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"voting\.calibrate\.data: 1 of 2 questions have no answer"):
        read_slice(tmp_path, [make_question("One"), make_question("Two", truth=None)])


def test_a_calibration_question_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="comes twice"):
        read_slice(tmp_path, [make_question("One"), make_question("One")])
