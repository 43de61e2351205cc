"""Samples whose prompt opens thoughts, and truncated samples."""

import pytest

from medssr_dist.inference.requests import Completion, SampleRequest

OPTIONS = {"A": "iron", "B": "zinc"}


@pytest.mark.parametrize(
    ("opening", "text", "truncated", "answer"),
    [
        ("<think>\n", "Perhaps iron? The answer is A", True, None),
        ("<think>\n", "Perhaps iron? The answer is A. No.</think>The answer is B.", False, "B"),
        ("", "The ferritin is low. So A.", False, "A"),
        ("", "The ferritin is low. So A.", True, None),
        ("", "The ferritin is low. The answer is A.", True, "A"),
    ],
)
def test_answers_of_samples(opening, text, truncated, answer):
    request = SampleRequest("key", (1, 2), options=OPTIONS, opening=opening)
    sample = Completion.from_text(request, 5, text, 9, truncated)
    assert (sample.answer, sample.text, sample.truncated) == (answer, opening + text, truncated)


def test_a_sample_that_ends_in_thoughts_counts_as_truncated():
    request = SampleRequest("key", (1, 2), options=OPTIONS)
    assert Completion.from_text(request, 5, "<think>The answer is A.", 9, truncated=False).truncated
    assert not Completion.from_text(request, 5, "<think>A?</think>B", 9, truncated=False).truncated
