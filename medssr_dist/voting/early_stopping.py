"""When the votes taken so far determine the decision, and how many more are needed at least.

Symbols: K votes per question (`voting.samples`), of which r have not been taken; the leader is the option with the most
votes, the runner-up the one with the second most.

Lossless stopping. The seeds of all K votes are fixed beforehand, so full voting is one of the possible completions:
each of the r votes is for an option or invalid. `is_certain` checks that every completion ends in the same decision,
hence full voting does too. Not every completion has to be tried, because the extreme ones bound the rest:
- Another option can catch up with the leader only if it does so when it gets all r votes. The runner-up needs the
  fewest. One vote breaks a tie, and ends "no valid vote".
- The leader's share of the K votes is least when it gets none of the r, and greatest when it gets all of them.
- So is its share of the valid votes, if the votes that it does not get are for other options: an invalid vote leaves
  this share as it is, a vote for another option lowers it, a vote for the leader raises it.
Division and comparison of doubles preserve this order. So two shares show whether the label is certainly kept, or
certainly not kept.

Waves. `count_needed_votes` is the least number of further votes after which the decision can be certain, so no proper
part of such a wave can make it certain, whatever its votes are. Waves in the order of the seeds take exactly the votes
that single votes in this order would take. A wave need not make the decision certain; then another wave follows.

Statistical stopping (`voting.adaptive=statistical`) also stops where another decision is improbable: not lossless, but
with a known error rate. The options and "no answer" have a uniform prior, Dirichlet(1, ..., 1). After counts c, the
further votes follow the Dirichlet-multinomial distribution with parameters 1 + c. Its probabilities are ratios of
binomial coefficients: x further votes for a category with c votes can be arranged in C(c + x, x) ways, r further votes
over m categories with n votes in C(n + m + r - 1, r). Sums of these are exact integers. The error rate holds in this
model, for each stop; an option without votes has its probability from the prior alone. The vote on a question never
stops at a tie or without a valid vote, as one more vote may end either.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import comb
from operator import mul
from typing import NamedTuple

from medssr_dist.config.voting import Voting
from medssr_dist.voting.tally import Decision, DecisionRule, RankedCounts, Tally, rank_counts, reaches_threshold


class Interval(NamedTuple):
    """The least and the greatest possible value; equal where the value is known."""

    least: float
    most: float


class ConfidenceBounds(NamedTuple):
    """The leader's share of the votes, as far as it is known before all K votes are taken.

    Example: after BBBBB, with K = 8, ConfidenceBounds(requested=Interval(5/8, 1), valid=Interval(5/8, 1))

    Attributes:
        requested: its votes / K.
        valid: its votes / valid votes; 0 where there may be no valid vote.
    """

    requested: Interval
    valid: Interval


class LikelyDecision(NamedTuple):
    """Whether the leader's label is more likely kept or not kept, and the probability that the leader wins so."""

    kept: bool
    probability: float


def is_certain(tally: Tally, letters: Sequence[str], voting: Voting) -> bool:
    """Whether the vote on a question may end: these votes determine the decision that all K votes would give.

    What has to be determined depends on `voting.adaptive`. never: nothing, all K votes are taken. lossless: outcome,
    answer and whether the label is kept. kept: that the label is not kept, or that it is and with which answer.
    statistical: the leader wins and its label is kept, or it wins and its label is not kept, with a probability of at
    least 1 - error_rate.
    """
    return _is_certain(rank_counts(tally, letters), DecisionRule.from_config(voting))


def count_needed_votes(tally: Tally, letters: Sequence[str], voting: Voting) -> int:
    """Return the fewest further votes after which the vote may end (`is_certain`); 0 = it may end now."""
    return _count_needed_votes(rank_counts(tally, letters), DecisionRule.from_config(voting))


def find_decision(tally: Tally, letters: Sequence[str], voting: Voting) -> Decision | None:
    """Return the decision, or None where it is not certain."""
    ranked, rule = rank_counts(tally, letters), DecisionRule.from_config(voting)
    if not _is_certain(ranked, rule):
        return None
    if rule.remaining(ranked) == 0:
        return rule.decide(ranked)
    if rule.adaptive == "statistical":
        return Decision("labeled", _find_likely_decision(ranked, rule).kept)
    return _find_unanimous_decision(ranked, rule) or Decision("rejected", False)


def bound_confidence(tally: Tally, letters: Sequence[str], voting: Voting) -> ConfidenceBounds:
    """Return the least and the greatest share that the option with the most votes can have after all K votes.

    The share of the valid votes is least when its rivals get as many further votes as leave it at the top. Where more
    votes than that are left, all options may end equal.
    """
    ranked, rule = rank_counts(tally, letters), DecisionRule.from_config(voting)
    top, remaining, valid = ranked.counts[0], rule.remaining(ranked), ranked.valid
    most_valid = min(valid + remaining, top * len(letters))
    of_valid = Interval(
        top / most_valid if top else 0.0, (top + remaining) / (valid + remaining) if valid + remaining else 0.0
    )
    return ConfidenceBounds(Interval(top / rule.samples, (top + remaining) / rule.samples), of_valid)


def _is_certain(ranked: RankedCounts, rule: DecisionRule) -> bool:
    remaining = rule.remaining(ranked)
    if remaining == 0:
        return True
    if rule.adaptive == "never":
        return False
    if _find_unanimous_decision(ranked, rule):
        return True
    if rule.adaptive == "kept":
        return not rule.keeps(ranked.counts[0] + remaining, ranked.valid + remaining)
    return rule.adaptive == "statistical" and _find_likely_decision(ranked, rule).probability >= 1 - rule.error_rate


def _find_unanimous_decision(ranked: RankedCounts, rule: DecisionRule) -> Decision | None:
    """Return the decision that every completion ends in, or None where they differ. At least one vote must be left."""
    remaining = rule.remaining(ranked)
    (top, second), valid = ranked.counts[:2], ranked.valid
    if top <= second + remaining:
        return None
    if rule.keeps(top, valid + remaining):
        return Decision("labeled", True)
    return None if rule.keeps(top + remaining, valid + remaining) else Decision("labeled", False)


def _find_likely_decision(ranked: RankedCounts, rule: DecisionRule) -> LikelyDecision:
    return find_likely_decision(ranked.counts, ranked.invalid, rule.samples, rule.threshold, rule.confidence)


@lru_cache(maxsize=2**16)
def _count_needed_votes(ranked: RankedCounts, rule: DecisionRule) -> int:
    remaining = rule.remaining(ranked)
    if rule.adaptive == "never":
        return remaining

    def can_be_certain(count: int) -> bool:
        return any(_is_certain(after, rule) for after in _best_waves(ranked, count, rule.confidence == "valid"))

    # What is possible after n votes is possible after n + 1: a probability is the mean over the outcomes of one more.
    return bisect_left(range(remaining), True, key=can_be_certain)


def _best_waves(ranked: RankedCounts, count: int, of_valid: bool) -> Iterator[RankedCounts]:
    """Yield possible counts after `count` more votes. If any counts can be certain, one of these is.

    It is enough to let the present leader win: the final votes of another winner and of the leader can be exchanged. A
    vote for a rival only serves to lower the share of the valid votes. It is best given to the last rival, so that the
    runner-up stays low; where the share of all K votes counts, an invalid vote does as well.
    """
    leader, rivals = ranked.counts[0], list(ranked.counts[1:])
    for to_rivals in range(count + 1 if of_valid else 1):
        if to_rivals:
            rivals[rivals.index(rivals[-1])] += 1  # the first one equal to the last: they stay in order
        for to_leader in range(count - to_rivals, -1, -1):
            counts = sorted((leader + to_leader, *rivals), reverse=True)
            yield RankedCounts(tuple(counts), ranked.invalid + count - to_rivals - to_leader)


@lru_cache(maxsize=2**16)
def find_likely_decision(
    counts: tuple[int, ...], invalid: int, samples: int, threshold: float, confidence: str
) -> LikelyDecision:
    """Return whether the leader's label is more likely kept or not kept, and the probability of just this decision.

    The module's docstring states the model. No other option is more likely to win than the leader; apart from the
    leader's win, only a tie or "no valid vote" can have a probability above 1/2.

    Args:
        counts: votes taken for each option, in descending order.
        invalid: invalid votes taken.
        samples: K.
        confidence: 'requested' or 'valid', the denominator of the share.
    """
    valid = sum(counts)
    remaining = samples - valid - invalid
    ways = {True: 0, False: 0}
    for to_leader in range(remaining + 1):
        final = counts[0] + to_leader
        for to_rivals, arrangements in enumerate(_count_ways_below(counts[1:], final, remaining - to_leader)):
            of = samples if confidence == "requested" else valid + to_leader + to_rivals
            kept = of > 0 and reaches_threshold(final, of, threshold)
            to_invalid = remaining - to_leader - to_rivals
            ways[kept] += comb(final, to_leader) * arrangements * comb(invalid + to_invalid, to_invalid)
    likely = ways[True] >= ways[False]
    return LikelyDecision(likely, ways[likely] / comb(samples + len(counts), remaining))


def _count_ways_below(counts: tuple[int, ...], final: int, remaining: int) -> list[int]:
    """Return at index y in how many ways y of `remaining` votes fall on `counts` so that each stays below `final`."""
    ways = [1] + [0] * remaining
    for count in counts:
        own = [comb(count + more, more) for more in range(min(remaining, final - 1 - count) + 1)]
        ways = [sum(map(mul, own, ways[total::-1])) for total in range(remaining + 1)]
    return ways
