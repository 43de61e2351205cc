"""The authors' reading rule and rounding, on examples worked out by hand from their script."""

import pytest

from medssr_dist.data.records import Question
from medssr_dist.evaluation.paper_rule import list_gold_letters, read_paper_answer, round_as_paper


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("", None),
        ("Iron is low. The answer is B.", "B"),
        ("The answer is A. No, wait. The answer is C", "C"),  # the last of one form
        ("The answer is [D].", "D"),
        (r"The answer is $\boxed{E}$", "E"),
        ("The answer is [D]. The answer is A, I think. The answer is [C].", "A"),  # the bare form comes first
        (r"The answer is [D] and then The answer is $\boxed{B}$", "B"),  # boxed comes before brackets
        ("the answer is c", "C"),  # without regard to case, if nothing else is found
        ("THE ANSWER IS D", "D"),
        ("the answer is b. The answer is [A]", "A"),
        ("The answer is Because", "B"),  # nothing ends the letter
        ("The answer is not given", "N"),  # of an option or not
        ("<think>The answer is B</think>So C.", "B"),  # thoughts count
        ("The answer is (B)", None),
        ("The answer is: B", None),
        ("The answer is **B**", None),
        ("The answer is  B", None),
        ("The answer is\nB", None),
        ("Answer: B", None),
        (r"\boxed{B}", None),
        ("The answer is $\\boxed{b}$", None),
        ("B", None),
    ],
)
def test_reading_rule(text, letter):
    assert read_paper_answer(text, "Qwen3-8B") == letter


def test_gemma_models_have_a_form_of_their_own():
    assert read_paper_answer("The answer is **B**", "google/MedGemma-4b") == "B"
    assert read_paper_answer("The answer is **B** or The answer is [C]", "gemma") == "C"
    assert read_paper_answer("the answer is d, The answer is **B**", "gemma") == "B"


def test_second_pass_letters_are_the_right_ones_of_the_file():
    truths = ("C", "A", "C", None)
    questions = [Question.make(f"{i}", list("wxyz"), source="s", truth=truth) for i, truth in enumerate(truths)]
    assert list_gold_letters(questions) == ("A", "C")


def test_accuracies_are_rounded_before_they_are_averaged():
    # 1/3 and 2/3 are 33.33 and 66.67 percent; their mean is 50.0, their population deviation 16.67
    found = round_as_paper([1 / 3, 2 / 3])
    assert found == (0.5, 0.1667, (0.3333, 0.6667))
    # 12.344 -> 12.34, 12.346 -> 12.35: the mean 12.345 is rounded to two decimals again, the deviation is 0.005
    assert round_as_paper([0.12344, 0.12346]).per_generation == (0.1234, 0.1235)
    assert round_as_paper([0.25]) == (0.25, 0.0, (0.25,))
