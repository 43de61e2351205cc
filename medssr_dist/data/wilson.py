"""How sure a share is: k of n were counted, so the rate behind them lies between these bounds.

Wilson's score interval (Wilson, J. Am. Stat. Assoc. 22:209-212, 1927) holds its level for small n and for
shares near 0 and 1, where the textbook interval leaves [0, 1] or has no width at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959964  # 97.5% quantile of the normal distribution: 2.5% lie outside on either side


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Bounds (low, high), within 0..1, of the 95% interval for `successes` of `trials`.

    Without a trial nothing is known: (0.0, 1.0). Raises ValueError unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    share, z_squared = successes / trials, _Z_95**2
    middle = share + z_squared / (2 * trials)
    spread = _Z_95 * math.sqrt(share * (1 - share) / trials + z_squared / (4 * trials**2))
    scale = 1 + z_squared / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


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
    low, high = wilson(count, of) if of else (None, None)
    return Share(count / of if of else None, low, high, count, of)


def share_of(count: int, of: int) -> dict:
    """`count` of `of` with its 95% Wilson interval; share, low and high are None where `of` is 0."""
    low, high = wilson(count, of) if of else (None, None)
    return {"share": count / of if of else None, "low": low, "high": high, "count": count, "of": of}


def part(count: int, of: int) -> str:
    """Example: '12 of 36 (33.3%)'."""
    return f"{count:,} of {of:,} ({100 * count / of:.1f}%)" if of else f"{count:,} of 0"


def percent(share: float | None) -> str:
    """Example: '33.3%'; '-' where there is nothing to share."""
    return "-" if share is None else f"{100 * share:.1f}%"
