"""Who is let in: the server's own rate limit, a key that expires, a process that dies."""

from __future__ import annotations

import os
import time

from medssr_dist.synthesis.teacher.faults import FaultDraws, Faults
from medssr_dist.synthesis.teacher.stats import Stats

_BURST_S = 0.1  # of the rate limit that may be saved up


class Gate:
    """Says of each request what goes wrong with it, by the faults asked for and by what was served so far."""

    def __init__(self, faults: Faults, draws: FaultDraws, stats: Stats):
        self._faults = faults
        self._draws = draws
        self._stats = stats
        self._most = max(1.0, faults.limit_rps * _BURST_S)
        self._tokens = self._most
        self._filled = time.monotonic()

    def refusal(self) -> str | None:
        """The refusal that a request meets at once: '401' or '429', None for none. May end the process."""
        if self._served(self._faults.die_after):
            os._exit(1)
        if self._served(self._faults.expire_key_after):
            return "401"
        return None if self._faults.limit_rps == 0 or self._take() else "429"

    def fault(self, messages: list[dict]) -> str | None:
        """The fault that a chat request or batch line meets while it is answered."""
        return "500" if self._draws.poisoned(messages) else self._draws.draw()

    def call_fault(self) -> str | None:
        """The fault of a file or batch call; these are no part of the rate limit."""
        return "401" if self._served(self._faults.expire_key_after) else self._draws.call()

    def _served(self, replies: int | None) -> bool:
        return replies is not None and self._stats.outcomes["reply"] >= replies

    def _take(self) -> bool:
        """Take a token from the bucket that fills at limit_rps."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._faults.limit_rps)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
