"""The reward: exact match by the common grader; an error shows the sample."""

from __future__ import annotations

import json

import pytest

from medssr_dist.errors import InputError
from medssr_dist.training.rollout.reward import GradedSample, RewardError, load_reward, score

LABEL = json.dumps({"answer": "B", "options": {"A": "yes", "B": "no"}, "id": "q1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The answer is (B).", (1.0, "B")), ("The answer is A", (0.0, "A")), ("perhaps", (0.0, None))],
)
def test_exact_match_and_invalid_answers(text, expected):
    assert score(text, LABEL) == expected


@pytest.mark.parametrize("label", ["{}", "not JSON", json.dumps({"answer": "B"})])
def test_an_error_shows_the_sample(label):
    with pytest.raises(RewardError) as caught:
        score("The answer is B", label)
    assert "'The answer is B'" in str(caught.value) and label in str(caught.value)


def half_for_any_letter(sample: GradedSample) -> float:
    """A reward function as a user writes one."""
    return 0.5 if sample.letter else 0.0


def not_a_number(sample: GradedSample) -> float:
    return float("nan")


def test_a_function_of_the_user_gives_the_reward():
    reward = load_reward(f"{__name__}:half_for_any_letter")
    assert score("The answer is A", LABEL, reward=reward) == (0.5, "A")
    assert score("perhaps", LABEL, reward=reward) == (0.0, None)


def test_a_function_gets_all_that_is_known():
    seen = []
    label = json.dumps(json.loads(LABEL) | {"confidence": 0.75})
    score("The answer is A", label, True, lambda sample: seen.append(sample) or 1.0, seed=7)
    options = {"A": "yes", "B": "no"}
    assert seen == [GradedSample("The answer is A", "A", "B", options, "q1", 0.75, truncated=True, seed=7)]


@pytest.mark.parametrize("reward", [not_a_number, lambda sample: "high", lambda sample: 1 / 0])
def test_a_reward_that_is_no_finite_number_shows_the_sample(reward):
    with pytest.raises(RewardError, match="'The answer is B'"):
        score("The answer is B", LABEL, reward=reward)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("random", "not of the form package.module:function"),
        ("no_such_module_here:f", "importing no_such_module_here raised ModuleNotFoundError"),
        ("json:no_such_function", "json has no function no_such_function"),
        ("json:__doc__", "json has no function __doc__"),
    ],
)
def test_a_bad_name_of_a_reward_is_refused(name, fault):
    with pytest.raises(InputError, match="training.reward") as caught:
        load_reward(name)
    assert fault in str(caught.value)
