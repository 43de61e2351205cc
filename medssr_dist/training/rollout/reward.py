"""The reward of a sample: exact match, by the extractor and grader of vote and evaluation (paper section 3.3).

`training.reward` may name a function of the user's own in its place; it gets a GradedSample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from medssr_dist.config.training import ANSWER_REWARD
from medssr_dist.data.answers import extract_answer
from medssr_dist.runtime.user_functions import load_user_function


class RewardError(Exception):
    """The reward of a sample could not be computed; the message shows the sample. Ends the run."""


@dataclass(frozen=True)
class GradedSample:
    """What a reward function is given.

    Attributes:
        text: what the policy wrote.
        letter: the option that the text answers with; None if it names none.
        answer: the label, a letter.
        options: letter -> text of the option.
        question_id: of the question.
        confidence: lower bound of the share of valid votes for a pseudo-label; None for a human answer.
        truncated: whether the text was cut at the token limit.
        seed: of this sample; the same after a restart.

    Example: GradedSample("The answer is B", "B", answer="B", options={"A": "iron", "B": "zinc"}, question_id="q1",
    confidence=0.71, truncated=False, seed=7)
    """

    text: str
    letter: str | None
    answer: str
    options: dict[str, str]
    question_id: str = ""
    confidence: float | None = None
    truncated: bool = False
    seed: int = 0


RewardFunction = Callable[[GradedSample], float]


class Reward(NamedTuple):
    """value: 1.0 or 0.0, or what a reward function of the user returned. letter: the answer extracted from the text;
    None if it names no option.

    Example: Reward(0.0, letter=None)
    """

    value: float
    letter: str | None


def reward_answer(sample: GradedSample) -> float:
    """Return 1.0 if the sample answers as its label says, else 0.0 (paper section 3.3)."""
    return float(sample.letter == sample.answer)


def load_reward(name: str) -> RewardFunction:
    """Return the reward function that `training.reward` names. Raises InputError if it cannot be imported."""
    return reward_answer if name == ANSWER_REWARD else load_user_function(name, "training.reward")


def score(
    text: str, label: str, truncated: bool = False, reward: RewardFunction = reward_answer, seed: int = 0
) -> Reward:
    """Return the reward of a generated text; by default 1.0 if the answer extracted from it equals the label, else 0.0.

    Args:
        truncated: whether the text was cut at the token limit; it then must state its answer.
        label: JSON object with the correct letter `answer`, the question's `options` (letter -> text), and, where
            known, its `id` and the `confidence` of the label.
        reward: gives the value.
        seed: of the sample.

    Raises:
        RewardError: grading has failed, for any reason; the message shows the sample.
    """
    try:
        target = json.loads(label)
        letter = extract_answer(text, target["options"], truncated).letter
        about = {"question_id": target.get("id", ""), "confidence": target.get("confidence")}
        sample = GradedSample(
            text, letter, target["answer"], target["options"], **about, truncated=truncated, seed=seed
        )
        value = float(reward(sample))
        if not math.isfinite(value):
            raise ValueError(f"the reward is {value}, not a finite number")
        return Reward(value, letter)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise RewardError(f"the reward raised {cause}; generated text: {text!r}; label: {label}") from error
