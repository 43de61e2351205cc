"""One endpoint in use: its client, its limits, and what its answers tell about it.

An endpoint that has not replied yet is on trial: what goes wrong is held against it, not against the prompts.
It is given up, with the reason, when it refuses the key, when its first answers are all unusable, or when it
cannot be reached at first. Later failures open its breaker, out of which it may come back.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from math import inf

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
from medssr_dist.synthesis.client.rate_limits import SHORTEST_HOLD_S, AdaptiveLimit, Breaker, Bucket

FIRST_ANSWERS = 5  # an endpoint whose first so many answers are unusable is given up
FIRST_CONTACT_S = 3.0  # as is one that cannot be reached for so long at first


@dataclass
class EndpointState:
    """Where an endpoint stands, for people. `breaker` is closed, open, half-open or dead; `reason` says why."""

    endpoint: InitVar[Endpoint]
    name: str = ""
    model: str = ""
    limit: int = 0
    in_flight: int = 0
    breaker: str = "closed"
    reason: str = ""
    replies: int = 0
    refusals: int = 0
    failures: int = 0

    def __post_init__(self, endpoint: Endpoint) -> None:
        self.name, self.model = endpoint.base_url, endpoint.model


class EndpointWorker:
    """An endpoint, and how much may be sent to it now. Times are of one monotonic clock, seconds."""

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis):
        self.client = ChatClient(endpoint, synthesis)
        self.served_at = -inf  # when the latest try that brought a reply was sent
        self.dead = ""  # why it was given up
        self.reason = ""  # of the last failure
        self._slots = 0  # taken: on the wire, or held after a refusal
        self._state = EndpointState(endpoint)
        self._limit = AdaptiveLimit(endpoint.concurrency)
        self._breaker = Breaker()
        self._requests = Bucket(endpoint.requests_per_minute) if endpoint.requests_per_minute else None
        self._tokens = Bucket(endpoint.tokens_per_minute) if endpoint.tokens_per_minute else None
        self._first_try = inf
        self._last_try = -inf
        self._unusable = 0

    @property
    def load(self) -> float:
        """Share of its limit that is taken. Work goes where it is smallest, so each gets what it sustains."""
        return self._slots / self._limit.limit

    @property
    def troubled(self) -> bool:
        """Its breaker is not closed, or it was given up."""
        return bool(self.dead) or self._breaker.state != "closed"

    def ready_at(self, tokens: int, now: float) -> float:
        """When a request of so many tokens may be sent; inf if not before something comes back."""
        if self._slots >= self._limit.limit or self.dead:
            return inf
        at = max(self._breaker.ready_at(now), self._last_try + self._limit.gap)
        if self._requests:
            at = max(at, self._requests.ready_at(1, now))
        if self._tokens:
            at = max(at, self._tokens.ready_at(tokens, now))
        return at

    def sending(self, tokens: int, now: float) -> None:
        """A try is about to be sent."""
        self._slots += 1
        self._state.in_flight += 1
        self._first_try = min(self._first_try, now)
        self._last_try = now
        self._breaker.sending()
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(tokens, now)

    def replied(self, reply: Reply, tokens: int, sent_at: float, now: float) -> None:
        """A try brought a reply; it had been estimated at so many tokens."""
        self.served_at = max(self.served_at, sent_at)
        self._state.replies += 1
        self._limit.replied(sent_at, now, self._slots)
        self._breaker.succeeded()
        used = reply.prompt_tokens + reply.completion_tokens
        if self._tokens and used:
            self._tokens.give(tokens - used)
        self._off_the_wire()
        self.release()

    def failed(self, failure: NoReply, tokens: int, sent_at: float, now: float) -> float:
        """A try brought none. Returns how long its slot must be held before `release`, seconds."""
        self._off_the_wire()
        self.reason = str(failure)
        hold = SHORTEST_HOLD_S
        if isinstance(failure, RequestRefused):
            self._state.refusals += 1
            hold = self._limit.refused(sent_at, now)
        else:
            self._state.failures += 1
        if self._tokens and not failure.may_be_billed:
            self._tokens.give(tokens)
        self._trip(failure, now)
        self._judge(failure, now)
        return hold

    def cancelled(self) -> None:
        """A try was called off, since another brought the reply."""
        self._breaker.called_off()
        self._off_the_wire()
        self.release()

    def release(self) -> None:
        """A slot is free again."""
        self._slots -= 1

    def state(self) -> EndpointState:
        """Where it stands now."""
        self._state.limit = 0 if self.dead else self._limit.limit
        self._state.breaker = "dead" if self.dead else self._breaker.state
        self._state.reason = self.dead or self._breaker.reason
        return self._state

    def _off_the_wire(self) -> None:
        self._state.in_flight -= 1

    def _trip(self, failure: NoReply, now: float) -> None:
        """Tell the breaker. Who refuses a prompt is there."""
        if isinstance(failure, PromptRefused):
            self._breaker.succeeded()
            return
        was_closed = self._breaker.state == "closed"
        self._breaker.failed(now, self.reason, getattr(failure, "after", None) or 0.0)
        if was_closed and self._breaker.state == "open":
            self._limit.restart()

    def _judge(self, failure: NoReply, now: float) -> None:
        """Give the endpoint up where going on has no sense."""
        name = self._state.name
        if isinstance(failure, KeyRefused):
            self.dead = f"{name} refuses the key ({failure}); set its api_key to a variable that holds a valid one"
        if self.served_at > -inf:
            return
        self._unusable += isinstance(failure, PromptRefused | NotAnEndpoint | Unreachable)
        if self._unusable < FIRST_ANSWERS:
            return
        if isinstance(failure, PromptRefused):
            self.dead = f"{name} refuses every request ({failure}); check model = {self._state.model!r}"
        elif isinstance(failure, NotAnEndpoint):
            self.dead = f"{name} is no OpenAI-compatible API ({failure}); check base_url and model"
        elif isinstance(failure, Unreachable) and now - self._first_try >= FIRST_CONTACT_S:
            self.dead = f"{name} cannot be reached ({failure}); start it, or check base_url"
