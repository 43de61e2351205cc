"""One endpoint in use: its client, its limits and its health.

An endpoint that has not replied yet is on trial: failures count against it, not against the prompts. It is given up
if it refuses the key or its account, if its first answers are all unusable, or if it cannot be reached at first.
Failures after the first reply open its circuit breaker instead: the endpoint is paused, and used again when a probe
succeeds. So does a time in which it refuses every request, whatever reason it gives.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.runtime.http.api_failure import ApiFailure, is_limit_refused
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.client.chat_client import ChatClient, Reply
from medssr_dist.synthesis.client.endpoint_state import EndpointState
from medssr_dist.synthesis.client.rate_limits import MIN_HOLD_S, AdaptiveLimit, CircuitBreaker, TokenBucket
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT

FIRST_ANSWERS = 5  # an endpoint is given up if this many first answers are unusable
FIRST_CONTACT_S = 3.0  # or if it cannot be reached for this long at first
ACCOUNT_REFUSALS = 3  # or if so many answers in a row say, in words alone, that the key or the account is refused
_WARN_S = 60.0  # between two warnings about one endpoint

logger = logging.getLogger(__name__)


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
        self._account_refusals = 0  # in a row
        self._warned_at = -inf

    @property
    def has_replied(self) -> bool:
        """Whether it has replied to anything; before that it is on trial, not the prompts."""
        return self.served_at > -inf

    @property
    def _is_on_last_trial(self) -> bool:
        """Whether only the tries in flight can still show that it is usable; a refusal comes sooner than a reply."""
        return not self.has_replied and self._unusable >= FIRST_ANSWERS and self._state.in_flight > 0

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
        if self._slots >= self._limit.limit or self.dead_reason or self._is_on_last_trial:
            return inf
        at = max(self._breaker.ready_at(now), self._last_try + self._limit.gap, self.client.paused_until)
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
        self._account_refusals = 0
        used = reply.prompt_tokens + reply.completion_tokens
        if self._tokens and used:
            self._tokens.give_back(tokens - used)
        self._state.in_flight -= 1
        self.release_slot()

    def record_failure(self, failure: ApiFailure, tokens: int, sent_at: float, now: float) -> float:
        """A try brought no reply. Return how many seconds its slot must be held before `release_slot`."""
        self._state.in_flight -= 1
        self.last_failure = failure.reason
        hold = MIN_HOLD_S
        if failure.scope is Scope.LOAD:
            self._state.refusals += 1
            hold = self._limit.record_refusal(sent_at, now)
        else:
            self._state.failures += 1
        if self._tokens and not failure.may_be_billed:
            self._tokens.give_back(tokens)
        self._update_breaker(failure, now)
        self._give_up_if_unusable(failure, now)
        if self.dead_reason or self.is_failing or not self.has_replied:
            self._warn(self.dead_reason or f"{self._state.name}: {failure.reason}", now)
        return hold

    def pause(self, failure: ApiFailure, now: float) -> None:
        """Open the circuit, unless it is open: the endpoint refuses every request now."""
        if self.is_failing:
            return
        self.last_failure = f"it refuses every request now ({failure.reason}); {self._advise(failure)}"
        self._breaker.trip(now, self.last_failure)
        self._limit.restart()
        self._warn(f"{self._state.name}: {self.last_failure}", now)

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

    def _update_breaker(self, failure: ApiFailure, now: float) -> None:
        """Count a failure in the circuit breaker; a server that refuses what one prompt says is alive."""
        if failure.scope in (Scope.CONTENT, Scope.CONTEXT) and failure.is_certain:
            self._breaker.record_reply()
            return
        was_closed = self._breaker.state == "closed"
        if was_closed and failure.scope.is_refusal:
            return  # the dispatcher finds out whether every request is refused
        self._breaker.record_failure(now, self.last_failure, failure.retry_after or 0.0)
        if was_closed and self._breaker.state == "open":
            self._limit.restart()

    def _give_up_if_unusable(self, failure: ApiFailure, now: float) -> None:
        """Set `dead_reason` if further tries make no sense."""
        name, scope = self._state.name, failure.scope
        self._account_refusals = self._account_refusals + 1 if scope.is_account else 0
        if scope.is_account and (failure.is_certain or self._account_refusals >= ACCOUNT_REFUSALS):
            what = "refuses the key" if scope is Scope.KEY else "says that the account has no credit or quota left"
            self.dead_reason = f"{name} {what} ({failure.reason}); {self._advise(failure)}"
        if self.has_replied:
            return
        self._unusable += scope.is_refusal or scope in (Scope.ADDRESS, Scope.UNREACHABLE)
        if self._unusable < FIRST_ANSWERS or self._state.in_flight:
            return
        if scope.is_refusal:
            self.dead_reason = f"{name} refuses every request ({failure.reason}); {self._advise(failure)}"
        elif scope is Scope.ADDRESS:
            self.dead_reason = f"{name} is no OpenAI-compatible API ({failure.reason}); check base_url and model"
        elif scope is Scope.UNREACHABLE and now - self._first_try >= FIRST_CONTACT_S:
            self.dead_reason = f"{name} cannot be reached ({failure.reason}); start it, or check base_url"

    def _advise(self, failure: ApiFailure) -> str:
        """Return what the user can change, by what the failure is about."""
        if failure.scope is Scope.KEY:
            return "set its api_key to a variable that holds a valid one"
        if failure.scope is Scope.CREDIT:
            return "add credit or raise the account's limit, then run the same command"
        if failure.scope is Scope.CONTEXT:
            return "lower synthesis.max_tokens or knowledge.top_k, or take a model with a longer context"
        if failure.scope is Scope.CONTENT:
            return "change synthesis.prompt_file, the seeds or the content filter of the account"
        if is_limit_refused(failure):
            return "set synthesis.max_tokens to what it allows"
        if "response_format" in failure.reason or "json_schema" in failure.reason:
            return "set json_schema: false for it"
        if "temperature" in failure.reason:
            return "set synthesis.temperature to what it allows"
        return f"check model = {self._state.model!r}, api_key and the account"

    def _warn(self, text: str, now: float) -> None:
        if now - self._warned_at >= _WARN_S:
            self._warned_at = now
            logger.warning("%s", text)
