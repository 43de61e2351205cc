"""Votes as the first rollouts of stage 1, and the choice of questions by their votes.

Stage 1 begins with the policy that voted and asks with the same prompt, so the votes with the first G seeds of a
question are a group that need not be sampled again: on-policy in the first step, with an importance correction for
`training.max_policy_lag` steps after it. `voting/first_votes.py` finds the votes and explains their weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.data.records import Label, WeightedVote
from medssr_dist.training.rollout.examples import DrawnPrompt
from medssr_dist.training.rollout.groups import Sample
from medssr_dist.training.rollout.reward import RewardFunction, score
from medssr_dist.training.vote_access import VoteSource

_VOTER_VERSION = 0  # version of the weights that voted: those that stage 1 begins with


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts are drawn, and which of their samples exist already.

    Args:
        samples: G.
        flat_limit: pass over prompts whose group is flat with a higher probability; 1 = over none.
        votes: None = every group is sampled by the engines.
        reward: grades the votes.
        max_lag: votes are samples until the policy is so many steps past the one that voted.
    """

    samples: int
    flat_limit: float
    votes: VoteSource | None
    reward: RewardFunction
    max_lag: int

    def find_samples(self, prompt: DrawnPrompt, version: int) -> list[Sample]:
        """Return the samples of a prompt that need not be drawn by the policy with weights of number `version`."""
        if self.votes is None or prompt.votes is None or version - _VOTER_VERSION > self.max_lag:
            return []
        found = self.votes.find(prompt.place - 1, prompt.votes)
        return [self._make_sample(vote, prompt.label) for vote in found]

    def passes_over(self, prompt: DrawnPrompt, samples: Sequence[Sample]) -> bool:
        """Whether the prompt's group would teach too little to be drawn; `samples` are those that exist already."""
        if self.flat_limit == 1 or prompt.votes is None:
            return False
        if len(samples) == self.samples:
            return len({sample.reward for sample in samples}) == 1
        return find_flat_probability(prompt.votes, self.samples) > self.flat_limit

    def _make_sample(self, found: WeightedVote, label: str) -> Sample:
        vote = found.vote
        reward, letter = score(vote.text, label, vote.truncated, self.reward, vote.seed)
        tokens = list(vote.token_ids or ())
        unknown = [math.nan] * len(tokens)
        return Sample(
            tokens, unknown, reward, letter is None, vote.truncated, _VOTER_VERSION, letter, vote_weight=found.weight
        )


def find_flat_probability(label: Label, samples: int) -> float:
    """Return the probability that `samples` new answers all agree with the label or all do not, by its votes.

    The share p of answers that agree has the posterior Beta(1/2 + votes for the label, 1/2 + other votes), in which it
    does not matter when the vote ended. The result is the mean of p^G + (1 - p)^G.

    Example: for G = 8: 0.82 with 16 of 16 votes for the label, 0.08 with 11 of 16.
    """
    votes = label.counts.get(label.answer or "", 0)
    agree, differ = votes + 0.5, label.taken - votes + 0.5

    def find_power(first: float) -> float:
        return math.prod((first + index) / (agree + differ + index) for index in range(samples))

    return find_power(agree) + find_power(differ)
