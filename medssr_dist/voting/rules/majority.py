"""Majority: every valid vote counts the same (paper section 3.2; Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

from medssr_dist.voting.question_votes import OptionShares, QuestionVotes, share_weights


def count_alike(found: QuestionVotes) -> OptionShares:
    """Return each option's share of the valid votes."""
    return share_weights(found, lambda vote: 1.0)
