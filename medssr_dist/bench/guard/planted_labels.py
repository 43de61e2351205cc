"""Labels of which a planned share is wrong, as when the base policy's majority errs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from medssr_dist.data.records import Label, Question


def plant_wrong_majorities(
    labels: Sequence[Label], share: float, random_seed: int, find_truth: Callable[[Question], str | None]
) -> list[Label]:
    """Return the kept labels in a random order, a random `share` of them with a wrong majority.

    The wrong majority is the wrong letter with most votes: it changes places with the majority that was found. A label
    that is wrong already stays as it is. Where the truth is not known, the majority that was found counts as right.
    """
    rng = random.Random(random_seed)
    kept = [label for label in labels if label.kept]
    shuffled = rng.sample(kept, len(kept))
    wrong = set(rng.sample(range(len(shuffled)), round(share * len(shuffled))))
    return [_make_wrong(label, find_truth, rng) if i in wrong else label for i, label in enumerate(shuffled)]


def _make_wrong(label: Label, find_truth: Callable[[Question], str | None], rng: random.Random) -> Label:
    right = find_truth(label.question) or label.answer
    if label.answer is None or label.answer != right:
        return label
    others = [letter for letter in label.question.options if letter != right]
    wrong = max(rng.sample(others, len(others)), key=lambda letter: label.counts.get(letter, 0))
    counts = label.counts | {wrong: label.counts.get(right, 0), right: label.counts.get(wrong, 0)}
    return label.model_copy(update={"answer": wrong, "counts": {name: n for name, n in counts.items() if n}})
