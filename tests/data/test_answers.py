"""Answer extraction: every form, their order, only letters of the question's options, and no guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.data.answers import extract_answer, grade
from medssr_dist.data.prompt_forms import PRESETS, load_prompt_form
from medssr_dist.data.records import LETTERS, Question

OPTIONS = {"A": "Anemia", "B": "Aplastic anemia", "C": "Iron deficiency", "D": "Hemophilia (type A)"}


@pytest.mark.parametrize(
    ("text", "letter", "method"),
    [
        ("The answer is (B).", "B", "statement"),
        ("the answer is b", "B", "statement"),
        ("The answer is [D]", "D", "statement"),
        ("**Answer:** C", "C", "statement"),
        ("The correct answer is: **B. Aplastic anemia**", "B", "statement"),
        ("The best answer is option C.", "C", "statement"),
        ("The answer is:\n\n B", "B", "statement"),
        (r"\boxed{B}", "B", "boxed"),
        (r"The answer is $\boxed{\text{C}}$", "C", "boxed"),
        ("Surely (C)", "C", "bracketed"),
        ("**B. Aplastic anemia**", "B", "bold"),
        ("B", "B", "bare"),
        ("B. Aplastic anemia", "B", "bare"),
        ("It is iron\n  deficiency", "C", "option_text"),
        ("Aplastic anemia", "B", "option_text"),
        ("hemophilia (TYPE A)", "D", "option_text"),
    ],
)
def test_forms(text, letter, method):
    extraction = extract_answer(text, OPTIONS)
    assert (extraction.letter, extraction.method) == (letter, method)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is (letter).",
        "The answer is (E).",
        "The answer is a drug",
        "A patient presents with fever",
        "Anemia or iron deficiency",
        "It is aplastic anemia, not anemia",
        "anemias",
        "The answer is (AB)",
    ],
)
def test_none_rather_than_a_guess(text):
    extraction = extract_answer(text, OPTIONS)
    assert (extraction.letter, extraction.method) == (None, None)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is A. No, wait: the answer is C.", "C"),
        (r"\boxed{A}, and later \boxed{D}", "D"),
        ("The answer is D because (A) and (B) are wrong", "D"),
        (r"The answer is A. \boxed{B}", "B"),
        ("The answer is B. The answer is (J).", "B"),
    ],
)
def test_last_match_of_the_strongest_form_wins(text, letter):
    assert extract_answer(text, OPTIONS).letter == letter


def test_equal_option_texts_name_no_letter():
    options = {"A": "36 hours", "B": "36 hours", "C": "72 hours"}
    assert extract_answer("36 hours", options).letter is None
    assert extract_answer("72 hours", options).letter == "C"
    assert extract_answer("The answer is (B).", options).letter == "B"


@pytest.mark.parametrize(
    "filler", [" ", "\n", " \n", "\t", "(", "( ", "* ", ":", " :", "answer is ", r"\boxed{", "**A. "]
)
def test_degenerate_replies_take_linear_time(filler):
    """The reply is so long that extraction in more than linear time would not finish."""
    text = "The answer is" + filler * (8000 // len(filler)) + "\nThe answer is (D)."
    assert extract_answer(text, OPTIONS).letter == "D"


@given(st.text(max_size=300), st.integers(2, len(LETTERS)))
def test_any_text_gives_an_offered_letter_or_none(text, count):
    options = {letter: f"option {letter}" for letter in LETTERS[:count]}
    extraction = extract_answer(text, options)
    assert extraction.letter is None or extraction.letter in options
    assert (extraction.letter is None) == (extraction.method is None)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=100).filter(lambda text: "boxed" not in text),
    st.sampled_from("ABCD"),
    st.sampled_from(["The answer is ({}).", "The answer is {}", "Answer: {}", "the answer is **{}**"]),
)
def test_a_final_statement_is_found_after_any_reasoning(reasoning, letter, form):
    assert extract_answer(f"{reasoning}\n{form.format(letter)}", OPTIONS).letter == letter


@given(st.text("\\boxedanswer is:()[]*AaBb.\n ", max_size=60))
def test_text_made_of_parts_of_the_forms(text):
    assert extract_answer(text, {"A": "x1", "B": "x2"}).letter in (None, "A", "B")


def test_grade():
    assert grade("The answer is (B).", OPTIONS, "B") == 1.0
    assert grade("The answer is (B).", OPTIONS, "C") == 0.0
    assert grade("no idea", OPTIONS, "B") == 0.0


@pytest.mark.parametrize("preset", PRESETS)
def test_the_prompt_itself_answers_nothing(preset):
    question = Question.make("Which?", list(OPTIONS.values()), source="test")
    instruction = load_prompt_form(preset).fill(question.stem, "", "A, B, C or D")
    assert extract_answer(instruction, OPTIONS).letter is None
