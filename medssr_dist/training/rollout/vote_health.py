"""How a policy's answers agree with each other and with the labels, in the groups that one step has drawn.

All drawn groups count, also those without variance, which are not trained on: a policy that always gives one answer
has no others. Entropies are divided by that of a uniform choice among the options: 1 = all options equally often, 0 =
always the same one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.training.rollout.groups import Group


@dataclass(frozen=True)
class VoteHealth:
    """Means over the drawn groups; a value is None if no answer names an option.

    majority_agreement: share of groups whose majority letter is the label; of tied letters each counts as its share.
    vote_entropy: entropy of the letters of one group, mean. letter_entropy: entropy of the letters of all answers.
    unanimous: share of groups whose answers all name the same option. drawn_length: tokens of an answer.
    drawn_truncated: share of answers cut off at max_new_tokens.

    Example: VoteHealth(majority_agreement=0.81, vote_entropy=0.44, letter_entropy=0.98, unanimous=0.22,
        drawn_length=212.5, drawn_truncated=0.01)
    """

    majority_agreement: float
    vote_entropy: float | None
    letter_entropy: float | None
    unanimous: float
    drawn_length: float
    drawn_truncated: float


def measure_health(groups: Sequence[Group]) -> VoteHealth:
    """Measure the groups of one step, at least one; the result does not depend on their order."""
    votes = [Counter(sample.letter for sample in group.samples if sample.letter) for group in groups]
    labels = [json.loads(group.label) for group in groups]
    options = [len(label["options"]) for label in labels]
    entropies = [_entropy(found, size) for found, size in zip(votes, options, strict=True) if found]
    pooled = sum(votes, Counter())
    samples = [sample for group in groups for sample in group.samples]
    return VoteHealth(
        majority_agreement=_mean([_agree(found, label["answer"]) for found, label in zip(votes, labels, strict=True)]),
        vote_entropy=_mean(entropies) if entropies else None,
        letter_entropy=_entropy(pooled, max(options)) if pooled else None,
        unanimous=_mean([len(group.samples) in found.values() for group, found in zip(groups, votes, strict=True)]),
        drawn_length=_mean([len(sample.token_ids) for sample in samples]),
        drawn_truncated=_mean([sample.truncated for sample in samples]),
    )


def _agree(votes: Counter[str], label: str) -> float:
    """Return 1 if `label` has most votes, 1/n if n letters have as many, else 0."""
    most = max(votes.values(), default=0)
    return 1 / list(votes.values()).count(most) if most and votes[label] == most else 0.0


def _entropy(votes: Counter[str], options: int) -> float:
    total = votes.total()
    found = -math.fsum(count / total * math.log(count / total) for count in votes.values())
    return max(0.0, found) / math.log(options)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
