"""Public forms of questions: options in any holder, answers as letter, text or number, and what is refused."""

import json
import math
from pathlib import Path

import pytest

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions

TEXTS = ["Retinol", "Ascorbic acid", "Biotin", "Niacin"]
STEM = {"question": "Which vitamin prevents scurvy?"}
LETTERED = dict(zip("ABCD", TEXTS, strict=True))
COLUMNS = {f"op{letter}": text for letter, text in zip("abcd", TEXTS, strict=True)}
NUMBERED = {f"op{number}": text for number, text in enumerate(TEXTS, start=1)}
INSIDE = "\n".join([STEM["question"], *(f"{letter}. {text}" for letter, text in LETTERED.items())])
PAIRS = [{"key": letter, "value": text} for letter, text in LETTERED.items()]


def read(tmp_path: Path, rows: list[dict]) -> list[Question]:
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_questions(DataSource(path=str(file)))


def read_refusal(tmp_path: Path, rows: list[dict]) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, rows)
    message = str(error.value)
    assert str(tmp_path / "set.jsonl") in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    "row",
    [
        {"options": LETTERED, "answer": "B"},
        {"options": {letter.lower(): text for letter, text in LETTERED.items()}, "answer": "b"},
        {"options": dict(reversed(LETTERED.items())), "answer_idx": "B"},
        {"options": TEXTS, "answer": "Ascorbic acid"},
        {"options": TEXTS, "answer": "ascorbic  ACID"},
        {"options": [f"{letter}. {text}" for letter, text in LETTERED.items()], "answer": "B"},
        {"options": [f"({letter}) {text}" for letter, text in LETTERED.items()], "answer": "(B)"},
        {"options": TEXTS, "answer": "B. Ascorbic acid"},
        {"options": TEXTS, "answer": ["B"]},
        {"options": PAIRS, "answer_idx": "B", "answer": "Ascorbic acid", "meta_info": "step1"},
        {"options": PAIRS[::-1], "answer_idx": "B"},
        {"options": [{"label": pair["key"], "text": pair["value"]} for pair in PAIRS], "answerKey": "B"},
        {"choices": {"label": list("ABCD"), "text": TEXTS}, "answerKey": "B"},
        {"choices": {"text": TEXTS, "label": list("1234")}, "answerKey": "2"},
        {"options": {"key": list("ABCD"), "value": TEXTS}, "answer_idx": "B"},
        {"options": json.dumps(LETTERED), "answer_idx": "B"},
        {"choices": TEXTS, "answer": 1, "subject": "nutrition"},
        {"options": TEXTS, "answer": "B", "answer_index": 1, "question_id": 70, "category": "health"},
        {"options": TEXTS, "answer_index": 1},
        {"options": LETTERED, "label": "B", "medical_task": "Basic Science"},
        {**NUMBERED, "cop": 2, "category": "Nutrition"},
        {**COLUMNS, "answer_idx": "B", "answer": "Ascorbic acid"},
        {**{f"option_{letter}": text for letter, text in LETTERED.items()}, "correct_option": "B"},
        {**{f"choices{letter}": text for letter, text in LETTERED.items()}, "answer_idx": "B"},
        {**{f"ending{number}": text for number, text in enumerate(TEXTS)}, "label": 1},
        {**LETTERED, "answer": "B"},
        {
            "question": STEM["question"] + "".join(f"\n{letter}. {text}" for letter, text in LETTERED.items()),
            "gold": "B",
        },
        {
            "question": STEM["question"] + "".join(f"\n{letter}. {text}" for letter, text in LETTERED.items()),
            "answer": "B",
        },
    ],
)
def test_every_public_form_is_read(tmp_path, row):
    (question,) = read(tmp_path, [STEM | row])
    assert (question.stem, question.options, question.truth) == (STEM["question"], LETTERED, "B")


def test_headqa_has_numbered_pairs_under_answers(tmp_path):
    answers = [{"aid": number, "atext": text} for number, text in enumerate(TEXTS, start=1)]
    row = {"qtext": STEM["question"], "ra": "2", "answers": answers, "qid": "7", "category": "medicine"}
    first, second = read(tmp_path, [row | {"name": "2013"}, row | {"name": "2014", "ra": 4}])
    assert (first.options, first.truth, second.truth) == (LETTERED, "B", "D")
    assert (first.source_id, second.source_id, first.topic) == ("2013-7", "2014-7", "medicine")


def test_pubmedqa_of_the_hub_is_read_like_the_authors(tmp_path):
    row = {"pubid": 21645374, "question": "Does it?", "long_answer": "It does.", "final_decision": "no"}
    row["context"] = {"contexts": ["One.", "Two."], "labels": ["AIM", "RESULTS"], "meshes": ["Humans"]}
    (question,) = read(tmp_path, [row])
    assert (question.stem, question.truth, question.source_id) == ("One.\nTwo.\n\nDoes it?", "B", "21645374")
    assert list(question.options.values()) == ["yes", "no", "maybe"]
    assert "is not yes, no or maybe" in read_refusal(tmp_path, [row | {"final_decision": "perhaps"}])


def test_medxpertqa_lists_its_options_once(tmp_path):
    listed = " ".join(f"({letter}) {text}" for letter, text in LETTERED.items())
    stem = f"{STEM['question']}\nAnswer Choices: {listed}"
    (question,) = read(tmp_path, [{"id": "Text-0", "question": stem, "options": LETTERED, "label": "B"}])
    assert question.stem == STEM["question"]
    (other,) = read(tmp_path, [{"question": stem + " (E) Folate", "options": LETTERED, "label": "B"}])
    assert "Folate" in other.stem


def test_ten_options_are_kept_in_their_order(tmp_path):
    row = STEM | {"options": {letter: f"text {letter}" for letter in "JIHGFEDCBA"}, "label": "J"}
    (question,) = read(tmp_path, [row])
    assert (list(question.options), question.options["J"], question.truth) == (list("ABCDEFGHIJ"), "text J", "J")


# --- options without a text -------------------------------------------------------------------------


@pytest.mark.parametrize("holder", [{"options": LETTERED}, COLUMNS])
def test_a_fifth_option_is_never_dropped(tmp_path, holder):
    fifth = {"options": LETTERED | {"E": "Folate"}} if "options" in holder else COLUMNS | {"ope": "Folate"}
    four, five = read(
        tmp_path, [STEM | holder | {"answer_idx": "B"}, {"question": "And?"} | fifth | {"answer_idx": "E"}]
    )
    assert (len(four.options), five.options["E"], five.truth) == (4, "Folate", "E")


@pytest.mark.parametrize("empty", [None, math.nan])
def test_an_absent_fifth_option_is_left_out_and_told(tmp_path, caplog, empty):
    rows = [STEM | COLUMNS | {"ope": empty, "answer_idx": "B"}, STEM | COLUMNS | {"ope": "Folate", "answer_idx": "E"}]
    assert [list(question.options) for question in read(tmp_path, rows)] == [list("ABCD"), list("ABCDE")]
    assert "1 of 2 items have no text for option E" in caplog.text
    assert "'E' is not one of" in read_refusal(tmp_path, [rows[0] | {"answer_idx": "E"}])


@pytest.mark.parametrize(
    "options",
    [
        COLUMNS | {"opd": math.nan},
        COLUMNS | {"opc": math.nan},
        COLUMNS | {"opd": None},
        COLUMNS | {"opd": " "},
        {"options": LETTERED | {"C": None}},
        {"options": LETTERED | {"D": math.nan}},
        {"options": LETTERED | {"D": ""}},
        {"options": [*TEXTS, None]},
        {"choices": [*TEXTS, math.nan]},
    ],
)
def test_an_option_without_a_text_is_refused(tmp_path, options):
    message = read_refusal(tmp_path, [STEM | options | {"answer_idx": "A", "id": "q7"}])
    assert "item 1 (id 'q7')" in message and "is missing or empty" in message


def test_letters_that_datasets_fills_in_are_left_out(tmp_path):
    (question,) = read(tmp_path, [STEM | {"options": {"A": "yes", "B": "no", "C": None, "D": None}, "answer": "B"}])
    assert (question.options, question.truth) == ({"A": "yes", "B": "no"}, "B")


# --- numbers that count from 0 or from 1 ------------------------------------------------------------


def numbered(key: str, values: list[int | str], holder: dict | None = None) -> list[dict]:
    return [
        {"question": f"Q{place}", **(holder or {"options": TEXTS}), key: value} for place, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("key", "values", "truths"),
    [
        ("answer", [0, 1, 3], "ABD"),
        ("answer", [1, 2, 4], "ABD"),
        ("answer_idx", ["1", "4"], "AD"),
        ("label", [0, 2, -1], "AC-"),
        ("cop", [1.0, 4.0], "AD"),
    ],
)
def test_the_whole_file_shows_what_numbers_count_from(tmp_path, key, values, truths):
    assert "".join(question.truth or "-" for question in read(tmp_path, numbered(key, values))) == truths


@pytest.mark.parametrize(
    ("rows", "needle"),
    [
        (numbered("answer", [1, 2]), "fit both counting from 0 and from 1"),
        (numbered("answer_idx", ["2"]), "fit both"),
        (numbered("cop", [1, 2, 3], COLUMNS), "cop values [1, 2, 3] fit both"),
        (numbered("answer", [0, 4]), "fit neither"),
        (numbered("answer", [0, 4], {"choices": TEXTS}), "fit neither"),
        (numbered("answer", [1, 4], {"choices": TEXTS}), ""),
    ],
)
def test_numbers_are_never_guessed(tmp_path, rows, needle):
    if needle:
        assert needle in read_refusal(tmp_path, rows)
    else:  # MMLU's form, but counted from 1: the file itself shows it
        assert [question.truth for question in read(tmp_path, rows)] == ["A", "D"]


def test_another_field_shows_what_numbers_count_from(tmp_path):
    first, second = read(tmp_path, [row | {"answer": "Ascorbic acid"} for row in numbered("answer_idx", [2, 2])])
    assert (first.truth, second.truth) == ("B", "B")


def test_a_number_is_not_taken_for_an_option_of_that_text(tmp_path):
    (question,) = read(tmp_path, [{"question": "How many?", "choices": ["1", "2", "3", "4"], "answer": 2}])
    assert question.truth == "C"
    rows = [{"question": "How many?", "options": ["2", "4", "8", "1"], "answer": text} for text in ("4", "1")]
    assert "give letters" in read_refusal(tmp_path, rows)
    (mixed, _) = read(tmp_path, [rows[0], STEM | {"options": TEXTS, "answer": "Biotin"}])
    assert mixed.truth == "B"


# --- answers that are not understood ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "needle"),
    [
        ({"answer": "E"}, "'E' is not one of the options"),
        ({"answer": "Folate"}, "'Folate' is not one of the options"),
        ({"answer": ["A", "B"]}, "is not one of the options"),
        ({"answer": True}, "is not one of the options"),
        ({"answer": {"letter": "B"}}, "is not one of the options"),
        ({"answer": "B. Biotin"}, "is not one of the options"),
        ({"answer_idx": "A", "answer": "Biotin"}, "contradict each other: answer_idx = 'A' and answer = 'Biotin'"),
        ({"answer_idx": "A", "label": "C"}, "contradict"),
        ({"correct": "B"}, "'correct' seems to hold it ('B'); name it: `columns: {answer: correct}`"),
        ({"solution_text": "Biotin"}, "'solution_text' seems to hold it"),
        ({"correct_idx": 2}, "'correct_idx' seems to hold it"),
        ({"answers": ["Biotin"]}, "'answers' seems to hold it"),
        ({"answer": "B", "choices": TEXTS}, "has options in 'options' and in 'choices'"),
        ({"answer": "B", **COLUMNS}, "has options in 'options' and in 'opa'"),
        ({"answer": "B", "images": ["x.png"]}, "needs an image"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, answer, needle):
    assert needle in read_refusal(tmp_path, [STEM | {"options": LETTERED} | answer])


def test_a_question_about_the_letters_of_a_figure_is_kept(tmp_path):
    rows = [
        STEM | {"options": LETTERED, "answer": "B"},
        {"question": "Which curve?", "options": ["A", "B"], "answer": "B"},
    ]
    assert read(tmp_path, rows)[1].options == {"A": "A", "B": "B"}


def test_equal_options_need_a_letter(tmp_path):
    options = {"options": {"A": "36 hours", "B": "36 hours", "C": "x"}}
    assert "may mean several" in read_refusal(tmp_path, [STEM | options | {"answer": "36 hours"}])


def test_a_letter_in_a_column_of_texts_is_a_text(tmp_path):
    rows = [STEM | {"options": ["B", "C", "K"], "answer": "C"}, STEM | {"options": TEXTS, "answer": "Biotin"}]
    assert [question.truth for question in read(tmp_path, rows)] == ["B", "C"]


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"options": "A, B or C"}, "the text of options is not valid JSON"),
        ({"options": {"A": "x", "C": "y"}}, "without a gap"),
        ({"options": {"1": "x", "3": "y"}}, "without a gap"),
        ({"options": [{"key": "A", "value": "x"}, {"key": "A", "value": "y"}]}, "without a gap"),
        ({"options": [{"key": "A", "value": "x", "image": 1}, {"key": "B", "value": "y"}]}, "expected two"),
        ({"options": [["x"], ["y"]]}, "must be a text, got list"),
        ({"options": ["A", "B", "C"]}, "has bare letters as the options of all items"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}}, "not as many labels"),
        ({"options": [f"o{number}" for number in range(11)]}, "2-10 options"),
        ({"question": "\n".join(["Q?", *(f"{letter}. {letter}1" for letter in "ABCDEFGHIJK")])}, "got more"),
        ({"opa": "x", "opc": "y"}, "without a gap"),
        ({"opa": "x", "opb": "y", "option1": "x", "option2": "y"}, "name one set of them: `columns: {options: [op"),
    ],
)
def test_options_that_are_not_understood_are_refused(tmp_path, options, needle):
    assert needle in read_refusal(tmp_path, [STEM | {"answer": "x"} | options])


def test_all_bad_items_are_named(tmp_path):
    rows = [STEM | {"id": f"i{place}", "options": LETTERED | {"D": ""}} for place in range(5)]
    message = read_refusal(tmp_path, [*rows, STEM | {"id": "good", "options": LETTERED}])
    assert "5 of 6" in message and all(f"(id 'i{place}')" in message for place in range(5)) and "good" not in message
