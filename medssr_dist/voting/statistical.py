"""Stopping where another decision is improbable: not lossless, with a stated error rate.

The letters and 'no answer' get a uniform prior, Dirichlet(1, ..., 1). After counts c the votes to come follow the
Dirichlet-multinomial with parameters 1 + c, whose probabilities are ratios of binomial coefficients: x further votes
for a category with c can be arranged in C(c + x, x) ways, r further ones over m categories with n votes in C(n + m +
r - 1, r). Sums over them are exact integers.

The error rate is that of this model, at each stop. An option that the votes so far do not show has its chance by the
prior alone. A tie, or no valid vote at all, is never stopped for: one more vote may end it.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb
from operator import mul

from medssr_dist.voting.tally import reaches


@lru_cache(maxsize=2**16)
def likely_decision(
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
            kept = of > 0 and reaches(final, of, threshold)
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
