"""The reward of a sample: exact match, by the extractor and grader of vote and evaluation (paper section 3.3)."""

from __future__ import annotations

import json
from typing import NamedTuple

from medssr_dist.data.answers import extract_answer


class RewardError(Exception):
    """The reward of a sample could not be computed; the message shows the sample. Ends the run."""


class Reward(NamedTuple):
    """value: 1.0 or 0.0. is_invalid: the text names no option.

    Example: Reward(0.0, is_invalid=True)
    """

    value: float
    is_invalid: bool


def score(text: str, label: str, truncated: bool = False) -> Reward:
    """Return the reward of a generated text: 1.0 if the answer extracted from it equals the label, else 0.0.

    Args:
        truncated: whether the text was cut at the token limit; it then must state its answer.
        label: JSON object with the correct letter `answer` and the question's `options` (letter -> text).

    Raises:
        RewardError: grading has failed, for any reason; the message shows the sample.
    """
    try:
        target = json.loads(label)
        letter = extract_answer(text, target["options"], truncated).letter
        return Reward(float(letter == target["answer"]), letter is None)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise RewardError(f"the reward raised {cause}; generated text: {text!r}; label: {label}") from error
