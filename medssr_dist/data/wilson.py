"""Confidence intervals of shares: k of n cases were counted, and the true rate lies between two bounds.

The interval is Wilson's score interval (Wilson, J. Am. Stat. Assoc. 22:209-212, 1927). It is correct for small n and
for shares near 0 and 1 too, where the usual normal interval leaves [0, 1] or has no width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

_Z_95 = 1.959964  # 97.5% quantile of the normal distribution: 2.5% lie outside on each side


class RateBounds(NamedTuple):
    """Bounds of a rate, in 0..1. Example: RateBounds(low=0.237, high=0.763)."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> RateBounds:
    """Return the 95% interval of the rate, given `successes` of `trials`; [0, 1] without trials.

    Raises:
        ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return RateBounds(0.0, 1.0)
    share, z_squared = successes / trials, _Z_95**2
    middle = share + z_squared / (2 * trials)
    spread = _Z_95 * math.sqrt(share * (1 - share) / trials + z_squared / (4 * trials**2))
    scale = 1 + z_squared / trials
    return RateBounds(max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


@dataclass(frozen=True)
class Share:
    """A counted share with its 95% Wilson interval; share, low and high are None where `of` is 0.

    Example: Share(share=0.25, low=0.15, high=0.39, count=12, of=48)
    """

    share: float | None
    low: float | None
    high: float | None
    count: int
    of: int


def measure_share(count: int, of: int) -> Share:
    """Return the share `count` of `of` with its interval."""
    if not of:
        return Share(None, None, None, count, of)
    low, high = wilson_interval(count, of)
    return Share(count / of, low, high, count, of)


def format_part(count: int, of: int) -> str:
    """Return a count and its share as text, for example '12 of 36 (33.3%)'."""
    return f"{count:,} of {of:,} ({100 * count / of:.1f}%)" if of else f"{count:,} of 0"


def format_percent(share: float | None) -> str:
    """Return a share as text, for example '33.3%'; '-' for None."""
    return "-" if share is None else f"{100 * share:.1f}%"
