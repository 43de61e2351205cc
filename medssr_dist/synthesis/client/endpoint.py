"""One endpoint in use: its client, its limits and its health.

An endpoint that has not replied yet is on trial: failures count against it, not against the prompts. It is given up
if it refuses the key, if its first answers are all unusable, or if it cannot be reached at first. Failures after the
first reply open its circuit breaker instead: the endpoint is paused, and used again when a probe succeeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.synthesis.client.chat_client import (
    ChatClient,
    KeyRefused,
    NoReply,
    NotAnEndpoint,
    PromptRefused,
    Reply,
    RequestRefused,
    Unreachable,
)
from medssr_dist.synthesis.client.endpoint_state import EndpointState
from medssr_dist.synthesis.client.rate_limits import MIN_HOLD_S, AdaptiveLimit, CircuitBreaker, TokenBucket
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT

FIRST_ANSWERS = 5  # an endpoint is given up if this many first answers are unusable
FIRST_CONTACT_S = 3.0  # or if it cannot be reached for this long at first


class EndpointWorker:
    """An endpoint, and how much may be sent to it now. Times are monotonic, in seconds."""

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis, response_format: Mapping[str, Any] = RESPONSE_FORMAT):
        self.client = ChatClient(endpoint, synthesis, response_format)
        self.served_at = -inf  # when the latest of the tries with a reply was sent
        self.dead_reason = ""  # why it was given up; '' if it was not
        self.last_failure = ""
        self._slots = 0  # slots taken: requests in flight, and slots held after a refusal
        self._state = EndpointState(endpoint.base_url, endpoint.model)
        self._limit = AdaptiveLimit(endpoint.concurrency)
        self._breaker = CircuitBreaker()
        self._requests = TokenBucket(endpoint.requests_per_minute) if endpoint.requests_per_minute else None
        self._tokens = TokenBucket(endpoint.tokens_per_minute) if endpoint.tokens_per_minute else None
        self._first_try = inf
        self._last_try = -inf
        self._unusable = 0

    @property
    def load(self) -> float:
        """Share of the limit that is taken. Work goes to the lowest load, so each endpoint gets what it sustains."""
        return self._slots / self._limit.limit

    @property
    def is_failing(self) -> bool:
        """Whether its circuit is not closed, or it was given up."""
        return bool(self.dead_reason) or self._breaker.state != "closed"

    def ready_at(self, tokens: int, now: float) -> float:
        """Return when a request of `tokens` tokens may be sent; inf if a slot must become free first."""
        if self._slots >= self._limit.limit or self.dead_reason:
            return inf
        at = max(self._breaker.ready_at(now), self._last_try + self._limit.gap)
        if self._requests:
            at = max(at, self._requests.ready_at(1, now))
        if self._tokens:
            at = max(at, self._tokens.ready_at(tokens, now))
        return at

    def record_sent(self, tokens: int, now: float) -> None:
        """A try is about to be sent."""
        self._slots += 1
        self._state.in_flight += 1
        self._first_try = min(self._first_try, now)
        self._last_try = now
        self._breaker.record_sent()
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(tokens, now)

    def record_reply(self, reply: Reply, tokens: int, sent_at: float, now: float) -> None:
        """A try brought a reply; `tokens` is what it had been estimated at."""
        self.served_at = max(self.served_at, sent_at)
        self._state.replies += 1
        self._limit.record_reply(sent_at, now, self._slots)
        self._breaker.record_reply()
        used = reply.prompt_tokens + reply.completion_tokens
        if self._tokens and used:
            self._tokens.give_back(tokens - used)
        self._state.in_flight -= 1
        self.release_slot()

    def record_failure(self, failure: NoReply, tokens: int, sent_at: float, now: float) -> float:
        """A try brought no reply. Return how many seconds its slot must be held before `release_slot`."""
        self._state.in_flight -= 1
        self.last_failure = str(failure)
        hold = MIN_HOLD_S
        if isinstance(failure, RequestRefused):
            self._state.refusals += 1
            hold = self._limit.record_refusal(sent_at, now)
        else:
            self._state.failures += 1
        if self._tokens and not failure.may_be_billed:
            self._tokens.give_back(tokens)
        self._update_breaker(failure, now)
        self._give_up_if_unusable(failure, now)
        return hold

    def record_cancelled(self) -> None:
        """A try was cancelled, because another try of the same job brought the reply."""
        self._breaker.record_cancelled()
        self._state.in_flight -= 1
        self.release_slot()

    def release_slot(self) -> None:
        """Free a slot."""
        self._slots -= 1

    def read_state(self) -> EndpointState:
        """Return a copy of the state now."""
        return replace(
            self._state,
            limit=0 if self.dead_reason else self._limit.limit,
            breaker="dead" if self.dead_reason else self._breaker.state,
            reason=self.dead_reason or self._breaker.reason,
        )

    def _update_breaker(self, failure: NoReply, now: float) -> None:
        """Count a failure in the circuit breaker; a server that refuses a prompt is alive."""
        if isinstance(failure, PromptRefused):
            self._breaker.record_reply()
            return
        was_closed = self._breaker.state == "closed"
        self._breaker.record_failure(now, self.last_failure, getattr(failure, "retry_after", None) or 0.0)
        if was_closed and self._breaker.state == "open":
            self._limit.restart()

    def _give_up_if_unusable(self, failure: NoReply, now: float) -> None:
        """Set `dead_reason` if further tries make no sense."""
        name = self._state.name
        if isinstance(failure, KeyRefused):
            self.dead_reason = (
                f"{name} refuses the key ({failure}); set its api_key to a variable that holds a valid one"
            )
        if self.served_at > -inf:
            return
        self._unusable += isinstance(failure, PromptRefused | NotAnEndpoint | Unreachable)
        if self._unusable < FIRST_ANSWERS:
            return
        if isinstance(failure, PromptRefused):
            self.dead_reason = f"{name} refuses every request ({failure}); check model = {self._state.model!r}"
        elif isinstance(failure, NotAnEndpoint):
            self.dead_reason = f"{name} is no OpenAI-compatible API ({failure}); check base_url and model"
        elif isinstance(failure, Unreachable) and now - self._first_try >= FIRST_CONTACT_S:
            self.dead_reason = f"{name} cannot be reached ({failure}); start it, or check base_url"
