"""The reward of a sample: exact match, by the extractor and grader of vote and evaluation (paper section 3.3)."""

from __future__ import annotations

import json

from medssr_dist.data.answers import extract_answer, grade


class RewardError(Exception):
    """The reward of a sample could not be told; the message shows the sample. Ends the run."""


def score(text: str, label: str) -> tuple[float, bool]:
    """(reward, whether the text names no option): reward 1.0 if the answer extracted from `text` equals the label.

    Args:
        label: JSON object with the right letter `answer` and the question's `options` (letter -> text).

    Raises:
        RewardError: for whatever was raised, with the sample.
    """
    try:
        target = json.loads(label)
        invalid = extract_answer(text, target["options"]).letter is None
        return grade(text, target["options"], target["answer"]), invalid
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise RewardError(f"the reward raised {found}; generated text: {text!r}; label: {label}") from error
