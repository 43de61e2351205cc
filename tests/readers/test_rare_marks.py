"""Marks of rare diseases: by the data set, by a column, and by the names of the rare list."""

import json

import pytest

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import count_facts, read_questions
from medssr_dist.readers.rare_marks import find_rare_disease

PUPPP = "Pruritic urticarial papules and plaques of pregnancy"
ROW = {"question": "Which enzyme is missing in Gaucher's disease?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}


@pytest.fixture
def read(tmp_path):
    def read_rows(rare, *rows):
        file = tmp_path / "set.jsonl"
        file.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
        return read_questions(DataSource(path=str(file), rare=rare))

    return read_rows


@pytest.mark.parametrize(
    ("rare", "expected"),
    [
        (None, (False, None, None)),
        (True, (True, "source", None)),
        (False, (False, "source", None)),
        ("auto", (True, "auto", "Gaucher disease")),
        ("is_rare", (True, "column", None)),
    ],
)
def test_a_source_says_how_its_questions_are_marked(read, rare, expected):
    (question,) = read(rare, {"is_rare": "yes"})
    assert (question.rare, question.rare_by, question.rare_disease) == expected
    (plain,) = read(None, {})
    assert question.id == plain.id


def test_auto_marks_only_what_names_a_disease(read):
    named, other = read("auto", {}, {"question": "Which vitamin prevents scurvy?"})
    assert (named.rare, other.rare, other.rare_by, other.rare_disease) == (True, False, "auto", None)
    assert count_facts([named, other]).describe().endswith("1 rare (auto)")


@pytest.mark.parametrize(("value", "rare"), [(True, True), (0, False), (1.0, True), ("No", False), ("true", True)])
def test_a_column_says_yes_or_no(read, value, rare):
    assert read("is_rare", {"is_rare": value})[0].rare == rare


@pytest.mark.parametrize("value", ["maybe", None, float("nan"), 2, 0.5, ["yes"]])
def test_another_value_of_the_column_is_refused(read, value):
    with pytest.raises(InputError, match=r"item 2: is_rare = .* is neither true nor false"):
        read("is_rare", {"is_rare": True}, {"is_rare": value})
    with pytest.raises(InputError, match="rare = 'other': the item has no such column; its keys are question"):
        read("other", {})


@pytest.mark.parametrize(
    ("stem", "right", "disease"),
    [
        ("What is the diagnosis?", "Wilson's disease", "Wilson disease"),
        ("Which is typical of WILSON DISEASE?", "x", "Wilson disease"),
        ("A boy with haemophilia A bleeds. What is missing?", "x", "Hemophilia A"),
        ("What is the diagnosis?", "Muscular dystrophy, Duchenne type", "Duchenne muscular dystrophy"),
        ("A girl has Sjogren-Larsson syndrome. What is her skin like?", "x", "Sjögren-Larsson syndrome"),
        ("A woman with PUPPP asks for advice. What helps?", "x", PUPPP),
    ],
)
def test_every_spelling_of_a_name_is_found(stem, right, disease):
    assert find_rare_disease(ask(stem, right)) == disease


@pytest.mark.parametrize(
    ("stem", "right"),
    [
        ("What causes fever and anemia?", "Infection"),
        ("The CSF shows 3 cells. PPD is positive. He had a CT of the chest and VATS.", "Tuberculosis"),
        ("She says puppp.", "x"),
        ("Incus and malleus are derived from:", "x"),
        ("His last tetanus shot was 3 years ago. He has a wound. What is next?", "x"),
        ("Which vaccine regimen does he need?", "Tetanus, diphtheria, and acellular pertussis"),
        ("He had pneumonia caused by SARS-CoV-2.", "x"),
        ("Drug X acts on the retinoblastoma (Rb) gene.", "x"),
        ("She has no history of cystic fibrosis. What is next?", "x"),
        ("Her family history is notable for cystic fibrosis in an uncle. What is next?", "x"),
        ("Sweat chloride is normal, which rules out cystic fibrosis.", "x"),
        ("What is it?", "Gout"),
    ],
)
def test_other_meanings_are_no_mark(stem, right):
    assert find_rare_disease(ask(stem, right)) is None


def test_a_wrong_option_is_no_mark_and_the_right_one_comes_first():
    assert find_rare_disease(ask("What is it?", "Gout", wrong="Wilson disease")) is None
    assert find_rare_disease(ask("Not Gaucher disease but Fabry disease?", "Wilson disease")) == "Wilson disease"


def ask(stem: str, right: str, wrong: str = "none of these") -> Question:
    return Question.make(stem, [wrong, right], source="set", truth="B")


def test_the_embedded_sets_say_which_disease():
    (question,) = read_questions(DataSource(path="hpo:evaluation", limit=1))
    assert (question.rare, question.rare_by) == (True, "source")
    assert question.rare_disease == question.options[question.truth]
    assert not read_questions(DataSource(path="hpo:evaluation", limit=1, rare=False))[0].rare
