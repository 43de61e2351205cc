"""What the teacher has seen, for tests and benchmarks: GET /stats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counts since the start.

    Attributes:
        outcomes: tries by what became of them: `reply`, or the kind of refusal or fault.
        tries: chat requests and batch lines, by the hash of their messages.
        replies: whole replies made, by the same hash; more than one is one paid twice.
        calls: file and batch calls, by what became of them.
        in_flight, peak_in_flight: chat requests being answered, now and at most.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts one chat request as in flight for the length of the block."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def count(self, key: str, outcome: str) -> None:
        """Count one try and what became of it."""
        self.tries[key] += 1
        self.outcomes[outcome] += 1
        if outcome == "reply":
            self.replies[key] += 1
