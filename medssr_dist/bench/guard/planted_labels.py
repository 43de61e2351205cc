"""Labels of which a planned share is wrong, as when the base policy's majority errs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError


def plant_wrong_majorities(
    labels: Sequence[Label], share: float, random_seed: int, find_truth: Callable[[Question], str | None]
) -> list[Label]:
    """Return the kept labels in a random order, with a wrong majority on a random `share` of them.

    A wrong majority is planted where the majority that was found is right, as elsewhere there is one already. It is the
    wrong letter with most votes, which changes places with the right one. Where the truth is not known, the majority
    that was found counts as right.

    Raises:
        InputError: fewer labels than that are right.
    """
    rng = random.Random(random_seed)
    kept = [label for label in labels if label.kept]
    shuffled = rng.sample(kept, len(kept))
    right = [i for i, label in enumerate(shuffled) if find_truth(label.question) in (None, label.answer)]
    count = round(share * len(shuffled))
    if count > len(right):
        raise InputError(
            f"{len(right)} of {len(shuffled)} labels are right; wrong ones cannot be planted on {count}; raise "
            "voting.threshold"
        )
    wrong = set(rng.sample(right, count))
    return [_make_wrong(label, rng) if i in wrong else label for i, label in enumerate(shuffled)]


def _make_wrong(label: Label, rng: random.Random) -> Label:
    right = label.answer
    assert right is not None, "a kept label has an answer"
    others = [letter for letter in label.question.options if letter != right]
    wrong = max(rng.sample(others, len(others)), key=lambda letter: label.counts.get(letter, 0))
    counts = label.counts | {wrong: label.counts.get(right, 0), right: label.counts.get(wrong, 0)}
    return label.model_copy(update={"answer": wrong, "counts": {name: n for name, n in counts.items() if n}})
