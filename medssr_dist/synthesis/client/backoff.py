"""How long a failed try waits before the next one."""

from __future__ import annotations

import random

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
MAX_RETRY_AFTER_S = 600.0  # a server that asks for more has no quota left; patience_s handles that case
MIN_RETRY_AFTER_S = 0.1  # with less, a server that always says 0 would be asked without a pause


def backoff_seconds(failures: int, retry_after: float | None = None) -> float:
    """Return the seconds until the next try after so many failures.

    If the server asked for `retry_after` seconds: these (at most MAX_RETRY_AFTER_S) and up to a tenth more. Else, and
    for less than MIN_RETRY_AFTER_S, full jitter: uniform from 0 to BACKOFF_FIRST_S * 2^(failures - 1), at most
    BACKOFF_LAST_S.
    """
    if retry_after is not None and retry_after >= MIN_RETRY_AFTER_S:
        return min(retry_after, MAX_RETRY_AFTER_S) * random.uniform(1, 1.1)
    return random.uniform(0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10)))
