"""Weight by length: a vote counts as much as it has tokens.

Longer chains of reasoning were more often right in complexity-based prompting (Fu et al., arXiv 2210.00720), shorter
ones in reasoning models (Hassid et al., arXiv 2505.17813). Which holds for a policy has to be measured.
"""

from __future__ import annotations

from medssr_dist.voting.question_votes import OptionShares, QuestionVotes, share_weights


def weigh_by_length(found: QuestionVotes) -> OptionShares:
    """Return each option's share of the tokens of the valid votes."""
    return share_weights(found, lambda vote: float(vote.tokens))
