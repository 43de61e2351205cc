"""The two controls: labels that belong to other questions, and a reward that does not read the answer.

A gain that remains with one of them does not come from the labels.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from medssr_dist.bench.copied_runs import replace_labels
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, parse_record
from medssr_dist.training.rollout.reward import GradedSample


def draw_reward(sample: GradedSample) -> float:
    """Return 1 or 0, each in half of the samples, whatever the sample says; the same after a restart."""
    return float(random.Random(f"{sample.question_id}/{sample.seed}").random() < 0.5)


def shuffle_kept_labels(file: Path, random_seed: int) -> None:
    """Give each kept label of a labeled.jsonl the answer of another one, drawn at random.

    Answers move among questions with equally many options, so each letter is the answer as often as before.
    """
    labels = [parse_record(Label, row, str(file)) for row in read_jsonl(file)]
    groups: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        if label.kept:
            groups[len(label.question.options)].append(place)
    rng = random.Random(random_seed)
    for places in groups.values():
        answers = [labels[place].answer for place in places]
        rng.shuffle(answers)
        for place, answer in zip(places, answers, strict=True):
            labels[place] = labels[place].model_copy(update={"answer": answer})
    replace_labels(file, labels)
