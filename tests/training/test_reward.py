"""The reward: exact match by the common grader; an error shows the sample."""

from __future__ import annotations

import json

import pytest

from medssr_dist.training.rollout.reward import RewardError, score

LABEL = json.dumps({"answer": "B", "options": {"A": "yes", "B": "no"}, "id": "q1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The answer is (B).", (1.0, False)), ("The answer is A", (0.0, False)), ("perhaps", (0.0, True))],
)
def test_exact_match_and_invalid_answers(text, expected):
    assert score(text, LABEL) == expected


@pytest.mark.parametrize("label", ["{}", "not JSON", json.dumps({"answer": "B"})])
def test_an_error_shows_the_sample(label):
    with pytest.raises(RewardError) as caught:
        score("The answer is B", label)
    assert "'The answer is B'" in str(caught.value) and label in str(caught.value)
