"""When the votes taken settle the decision, and how many more it takes at least before they can.

Why stopping loses nothing: the seeds of all K votes are fixed beforehand, so that full voting is one of the ways in
which the votes not taken may fall, each for an option or invalid. `is_certain` says that all of these ways end in the
same decision; then full voting ends in it. Not all ways need be tried, as the extremes bound the rest. With r votes
left, the leader is overtaken or caught up with if at all when all r go to the runner-up, an option without votes
included; a tie and "no valid vote" are broken by one vote. Of its shares, votes / K is least when none of the r is
for it and most when all are; votes / valid is so too, the rest being votes for other options: an invalid one leaves
the share as it is, a vote for another option lowers it, and one for the leader lifts it. Division and comparison of
doubles keep that order. Hence it is certain that the label is kept, or that it is not, by looking at two shares.

Waves: `count_needed_votes` is the least number of further votes after which the decision can be certain, so no part
of such a wave settles it, whatever the wave says; and where waves follow the order of the seeds, they take exactly the
votes that asking one by one would take. That a wave does settle it is not said: then there is another.

`adaptive: statistical` also stops where another decision is improbable: not lossless, with a stated error rate. The
letters and 'no answer' get a uniform prior, Dirichlet(1, ..., 1). After counts c the votes to come follow the
Dirichlet-multinomial with parameters 1 + c, whose probabilities are ratios of binomial coefficients: x further votes
for a category with c can be arranged in C(c + x, x) ways, r further ones over m categories with n votes in C(n + m +
r - 1, r). Sums over them are exact integers. The error rate is that of this model, at each stop. An option that the
votes so far do not show has its chance by the prior alone. A tie, or no valid vote at all, is never stopped for: one
more vote may end it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import comb
from operator import mul

from medssr_dist.config.schema import Voting
from medssr_dist.voting.tally import Decision, DecisionRule, RankedCounts, Tally, rank_counts, reaches_threshold


def is_certain(tally: Tally, letters: Sequence[str], voting: Voting) -> bool:
    """Whether voting on a question may end: with these votes, and with all K, it is decided alike.

    By `voting.adaptive`: never: only with K votes. lossless: outcome, answer and kept are settled. kept: it is settled
    that the label is not kept, or that it is and with which answer. statistical: that the leader wins and is kept, or
    that it wins and is not, has a probability of 1 - error_rate at least (`find_likely_decision`).
    """
    return _is_certain(rank_counts(tally, letters), DecisionRule.from_config(voting))


def count_needed_votes(tally: Tally, letters: Sequence[str], voting: Voting) -> int:
    """The fewest further votes after which voting could be `is_certain`; 0 = it is."""
    return _count_needed_votes(rank_counts(tally, letters), DecisionRule.from_config(voting))


def find_decision(tally: Tally, letters: Sequence[str], voting: Voting) -> Decision | None:
    """The decision, or None where it is not certain."""
    standing, rule = rank_counts(tally, letters), DecisionRule.from_config(voting)
    if not _is_certain(standing, rule):
        return None
    if rule.left(standing) == 0:
        return rule.decision(standing)
    if rule.adaptive == "statistical":
        return Decision("labeled", _likely(standing, rule)[0])
    return _settled(standing, rule) or Decision("rejected", False)


def bound_confidences(tally: Tally, letters: Sequence[str], voting: Voting) -> tuple[tuple[float, float], ...]:
    """Least and most share of the option with the most votes that all K votes may show: of K, and of the valid ones.

    It is least where no further vote is for the leader: as many for its rivals as leave it at the top. Where more are
    left than that, all options may end equal. 0 where there may be, or is, no valid vote.
    """
    standing, rule = rank_counts(tally, letters), DecisionRule.from_config(voting)
    top, left, valid = standing.counts[0], rule.left(standing), standing.valid
    rivals_and_leader = min(valid + left, top * len(letters))
    of_valid = top / rivals_and_leader if top else 0.0, (top + left) / (valid + left) if valid + left else 0.0
    return (top / rule.samples, (top + left) / rule.samples), of_valid


def _is_certain(standing: RankedCounts, rule: DecisionRule) -> bool:
    left = rule.left(standing)
    if left == 0:
        return True
    if rule.adaptive == "never":
        return False
    if _settled(standing, rule):
        return True
    if rule.adaptive == "kept":
        return not rule.keeps(standing.counts[0] + left, standing.valid + left)
    return rule.adaptive == "statistical" and _likely(standing, rule)[1] >= 1 - rule.error_rate


def _settled(standing: RankedCounts, rule: DecisionRule) -> Decision | None:
    """The decision where all ways in which the votes left may fall, of which there are some, end in it."""
    left = rule.left(standing)
    (top, second), valid = standing.counts[:2], standing.valid
    if top <= second + left:
        return None
    if rule.keeps(top, valid + left):
        return Decision("labeled", True)
    return None if rule.keeps(top + left, valid + left) else Decision("labeled", False)


def _likely(standing: RankedCounts, rule: DecisionRule) -> tuple[bool, float]:
    return find_likely_decision(standing.counts, standing.invalid, rule.samples, rule.threshold, rule.confidence)


@lru_cache(maxsize=2**16)
def _count_needed_votes(standing: RankedCounts, rule: DecisionRule) -> int:
    left = rule.left(standing)
    if rule.adaptive == "never":
        return left

    def possible(count: int) -> bool:
        return any(_is_certain(after, rule) for after in _best_waves(standing, count, rule.confidence == "valid"))

    # Possible after n votes, so after n + 1: a probability is the mean of those that one more vote may give.
    return bisect_left(range(left), True, key=possible)


def _best_waves(standing: RankedCounts, count: int, of_valid: bool) -> Iterator[RankedCounts]:
    """Where the options may stand after `count` more votes: of these one is certain, if any is.

    The winner may as well be the leader: another option that would win and the leader can exchange their final votes.
    A vote for a rival serves only to lower the share of the valid votes, best for the last one, so that the runner-up
    stays lowest; else an invalid one does as well.
    """
    leader, rivals = standing.counts[0], list(standing.counts[1:])
    for to_rivals in range(count + 1 if of_valid else 1):
        if to_rivals:
            rivals[rivals.index(rivals[-1])] += 1  # the first that is equal to the last: they stay in order
        for to_leader in range(count - to_rivals, -1, -1):
            counts = sorted((leader + to_leader, *rivals), reverse=True)
            yield RankedCounts(tuple(counts), standing.invalid + count - to_rivals - to_leader)


@lru_cache(maxsize=2**16)
def find_likely_decision(
    counts: tuple[int, ...], invalid: int, samples: int, threshold: float, confidence: str
) -> tuple[bool, float]:
    """Whether it is more likely that the leader wins and is kept, or wins and is not; and the probability of just this.

    Another decision can have a probability above 1/2 only if it is a tie, or that no vote is valid.

    Args:
        counts: votes taken for each letter offered, from the highest.
        confidence: 'requested' or 'valid', the denominator.
    """
    valid = sum(counts)
    left = samples - valid - invalid
    ways = {True: 0, False: 0}
    for more in range(left + 1):
        final = counts[0] + more
        for others, arranged in enumerate(_below(counts[1:], final, left - more)):
            of = samples if confidence == "requested" else valid + more + others
            kept = of > 0 and reaches_threshold(final, of, threshold)
            rest = left - more - others
            ways[kept] += comb(final, more) * arranged * comb(invalid + rest, rest)
    likely = ways[True] >= ways[False]
    return likely, ways[likely] / comb(samples + len(counts), left)


def _below(counts: tuple[int, ...], final: int, left: int) -> list[int]:
    """At y: in how many ways y of `left` further votes fall on `counts` so that each stays below `final`."""
    ways = [1] + [0] * left
    for count in counts:
        own = [comb(count + more, more) for more in range(min(left, final - 1 - count) + 1)]
        ways = [sum(map(mul, own, ways[total::-1])) for total in range(left + 1)]
    return ways
