"""Option orders and further stems: balanced, recorded, mapped back, and the same after a restart."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from medssr_dist.data.records import LETTERS, Question
from medssr_dist.errors import InputError
from medssr_dist.voting.question_forms import NO_PARAPHRASES, Paraphrases, list_forms

QUESTION = Question.make("Which vitamin?", ["iron", "zinc", "gold", "lead"], source="set", truth="B")


def test_without_options_there_is_one_form_the_question_itself():
    (form,) = list_forms(QUESTION, False, NO_PARAPHRASES, 42)
    assert (form.order, form.paraphrase, form.shown) == ("", 0, QUESTION)
    assert form.restore("C") == "C" and form.restore(None) is None


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
def test_each_option_stands_once_at_each_letter(count):
    question = Question.make("Which?", [f"text {i}" for i in range(count)], source="set")
    forms = list_forms(question, True, NO_PARAPHRASES, 42)
    places = Counter((letter, place) for form in forms for place, letter in enumerate(form.order))
    assert len(forms) == count and len(places) == count**2 and set(places.values()) == {1}


def test_letters_are_mapped_back_to_the_same_text():
    for form in list_forms(QUESTION, True, NO_PARAPHRASES, 42):
        assert form.shown.id == QUESTION.id and form.shown.truth is None
        for shown, text in form.shown.options.items():
            assert QUESTION.options[form.restore(shown)] == text
        assert list(form.shown.options) == list(LETTERS[:4])


def test_orders_depend_on_seed_and_question_alone():
    orders = {seed: [form.order for form in list_forms(QUESTION, True, NO_PARAPHRASES, seed)] for seed in range(20)}
    assert orders[3] == [form.order for form in list_forms(QUESTION, True, NO_PARAPHRASES, 3)]
    assert len({tuple(order) for order in orders.values()}) > 5


@pytest.mark.parametrize("option", ["All of the above", "Both A and C", "none of these", "B and D only"])
def test_options_that_refer_to_others_keep_their_order(option):
    question = Question.make("Which?", ["iron", "zinc", "gold", option], source="set")
    (form,) = list_forms(question, True, NO_PARAPHRASES, 42)
    assert form.order == "" and form.shown == question


def test_stems_change_after_each_round_of_the_orders(tmp_path):
    file = tmp_path / "stems.jsonl"
    file.write_text(json.dumps({"id": QUESTION.id, "stems": ["Name the vitamin.", "The vitamin is?"]}) + "\n")
    found = Paraphrases.read(str(file))
    forms = list_forms(QUESTION, True, found, 42)
    assert [form.paraphrase for form in forms] == [0] * 4 + [1] * 4 + [2] * 4
    assert [form.shown.stem for form in forms[::4]] == [QUESTION.stem, "Name the vitamin.", "The vitamin is?"]
    assert [form.order for form in forms[:4]] == [form.order for form in forms[4:8]]
    other = Question.make("Another?", ["iron", "zinc"], source="set")
    assert len(list_forms(other, False, found, 42)) == 1


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (['{"id": "a", "stems": []}'], "stems"),
        (['{"id": "a", "stems": ["x", "  "]}'], "is empty"),
        (['{"id": "a", "stems": ["x"]}', '{"id": "a", "stems": ["y"]}'], "has a line already"),
        (['{"id": "a", "stem": "x"}'], "line 1"),
        (["no json"], "line 1"),
    ],
)
def test_a_broken_file_of_stems_is_refused(tmp_path, lines, found):
    file = tmp_path / "stems.jsonl"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=found):
        Paraphrases.read(str(file))


def test_an_absent_file_of_stems_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"voting\.paraphrases"):
        Paraphrases.read(str(tmp_path / "none.jsonl"))


def test_the_hash_follows_the_content(tmp_path):
    hashes = set()
    for stem in ("x", "y"):
        file = tmp_path / f"{stem}.jsonl"
        file.write_text(json.dumps({"id": "a", "stems": [stem]}) + "\n")
        hashes.add(Paraphrases.read(str(file)).hash)
    assert len(hashes | {NO_PARAPHRASES.hash}) == 3
