"""Two ends of one transfer that must run at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

_REASON_S = 10.0  # after `send` has failed, the receivers have this long to say why


def run_together(send: Callable[[], None], receive: Callable[[dict[str, Any]], None], argument: dict[str, Any]) -> None:
    """Run `send()` while `receive(argument)` runs in a thread: both take part in the same collectives.

    Errors of either are raised; if both fail, that of `receive`, which names the engine. If `send` fails, `receive` is
    not waited for much longer, because it may never return.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        future = thread.submit(receive, argument)
        try:
            send()
        except RuntimeError as error:
            wait([future], timeout=_REASON_S)
            if future.done() and (reason := future.exception()):
                raise reason from error
            raise
        future.result()
    finally:
        thread.shutdown(wait=False)
