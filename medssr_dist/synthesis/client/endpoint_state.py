"""The state of an endpoint, for people and for progress.json."""

from __future__ import annotations

from dataclasses import dataclass

_IN_WORDS = {
    "closed": "in use",
    "open": "paused after failures",
    "half-open": "tested after a pause",
    "dead": "given up",
}


@dataclass
class EndpointState:
    """The state of an endpoint.

    Attributes:
        name: its base URL.
        limit: requests that may be in flight now; 0 with the batch transport.
        breaker: its circuit breaker: "closed", "open", "half-open"; or "dead" if the endpoint was given up.
        reason: why the breaker is not closed; with the batch transport, how far the batch is.
        replies, refusals, failures: tries by how they ended.

    Example: EndpointState("https://host/v1", "gpt-x", limit=64, in_flight=60, replies=1200, refusals=3)
    """

    name: str
    model: str
    limit: int = 0
    in_flight: int = 0
    breaker: str = "closed"
    reason: str = ""
    replies: int = 0
    refusals: int = 0
    failures: int = 0

    @property
    def in_words(self) -> str:
        """The state in words. Example: 'paused after failures'."""
        return _IN_WORDS[self.breaker]
