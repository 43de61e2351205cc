"""Weight by log-prob: a vote counts as the geometric mean of its tokens' probabilities.

This is the length-normalised weighted sum of self-consistency (Wang et al., arXiv 2203.11171, section 3.1). A related
weight, the divergence of each token's distribution from the uniform one, is self-certainty (Kang et al., arXiv
2502.18581).
"""

from __future__ import annotations

import math

from medssr_dist.data.records import Vote
from medssr_dist.voting.question_votes import OptionShares, QuestionVotes, share_weights


def weigh_by_logprob(found: QuestionVotes) -> OptionShares:
    """Return each option's share of the valid votes' weights. Raises ValueError where a vote has no log-prob."""
    return share_weights(found, _find_weight)


def _find_weight(vote: Vote) -> float:
    if vote.logprob is None:
        raise ValueError(f"vote {vote.seed} has no log-prob; take the votes in a new --run-dir, which records them")
    return math.exp(vote.logprob)
