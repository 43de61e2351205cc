r"""How the authors' script reads and counts answers: the part of `evaluation.protocol: paper` that needs no model.

Facts about vllm_logitsbias_multi.py in the repository tdlhl/MedSSR at commit ce5cd7b84641; the code here is our own.

- An answer is a capital letter right behind "The answer is ", in one of these forms: bare, `$\boxed{B}$`, `[B]`, and
  `**B**` if the model's name contains "gemma". The first of these forms that occurs anywhere decides, and its last
  occurrence counts. If none occurs, the bare form is searched without regard to case.
- Nothing ends the letter: "The answer is Because" is read as B. Any letter from A to Z counts, of an option or not, and
  the whole text is searched, thoughts too.
- A reply without such an answer gets a second, greedy pass, restricted to the letters that are the right answer to at
  least one question of the same file (`list_gold_letters`). A letter without an option is possible there and is wrong.
- Each generation is scored alone, in percent rounded to 2 decimals. The reported accuracy and standard deviation (the
  population's) are those of the rounded values, rounded again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from medssr_dist.data.records import Question

SENTENCE = "The answer is "
_BARE = r"([A-Z])"
_FORMS = (_BARE, r"\$\\boxed\{([A-Z])\}\$", r"\[([A-Z])\]")
_GEMMA_FORM = r"\*\*([A-Z])\*\*"


class RoundedAccuracy(NamedTuple):
    """Accuracy as the script reports it, but as shares: 57.35% is 0.5735.

    Example: RoundedAccuracy(accuracy=0.5735, std=0.0121, per_generation=(0.5614, 0.5856))
    """

    accuracy: float
    std: float
    per_generation: tuple[float, ...]


def read_paper_answer(text: str, model: str = "") -> str | None:
    """Return the letter that the authors' script reads in a reply, or None.

    Args:
        model: name of the policy's model; those of Gemma have a form of their own.

    Example: read_paper_answer("The answer is [C].") == "C"
    """
    forms = (*_FORMS, _GEMMA_FORM) if "gemma" in model.lower() else _FORMS
    for form, flags in [*((form, re.RegexFlag(0)) for form in forms), (_BARE, re.IGNORECASE)]:
        if letters := re.findall(SENTENCE + form, text, flags):
            return str(letters[-1]).upper()
    return None


def list_gold_letters(questions: Iterable[Question]) -> tuple[str, ...]:
    """Return the letters that are the truth of at least one question of a file, sorted."""
    return tuple(sorted({question.truth for question in questions if question.truth}))


def round_as_paper(per_generation: Sequence[float]) -> RoundedAccuracy:
    """Return mean and population standard deviation over the generations' accuracies, rounded as the script does."""
    percents = [round(100 * accuracy, 2) for accuracy in per_generation]
    mean, deviation = round(float(np.mean(percents)), 2), round(float(np.std(percents)), 2)
    return RoundedAccuracy(_to_share(mean), _to_share(deviation), tuple(map(_to_share, percents)))


def _to_share(percent: float) -> float:
    return round(percent / 100, 4)
