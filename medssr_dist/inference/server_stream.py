"""The samples of one lease, from the events with which a server streams them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from medssr_dist.inference.requests import Completion, SampleRequest
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import read_name, replace_surrogates

_MOST_TOKENS = 2**24  # of a sample; a larger count is none


class ServerError(Exception):
    """An error of the server. `scope`: what it is about, where the server said it."""

    def __init__(self, message: str, scope: Scope = Scope.TRY):
        super().__init__(message)
        self.scope = scope


class ServerLost(ServerError):
    """The server can no longer be used: connection lost, overload, or key or model no longer accepted."""


class LeaseRefused(ServerError):
    """The server refuses this request permanently; other requests may succeed."""


class UnusableServer(Exception):
    """The server's samples cannot be votes of this run. The message continues the server's address."""


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []


class _Choice(msgspec.Struct):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class StreamChunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class StreamedSamples:
    """The samples of one lease while their text arrives.

    Attributes:
        missing: number of samples that have not finished.
        tokens: generated so far, over all samples.
    """

    def __init__(self, request: SampleRequest, max_tokens: int):
        self._request, self._max_tokens = request, max_tokens
        self._texts: list[list[str]] = [[] for _ in range(request.n)]
        self._counts = [0] * request.n
        self._logprobs: list[list[float]] = [[] for _ in range(request.n)]
        self._token_ids: list[list[int]] = [[] for _ in range(request.n)]
        self.missing = request.n
        self.tokens = 0

    def add(self, chunk: StreamChunk) -> Completion | None:
        """Add a chunk; return the sample that it finishes. Raises ServerLost and UnusableServer."""
        if not chunk.choices:  # the token counts of the whole request, at its end
            return None
        if len(chunk.choices) > 1 or chunk.usage is None:
            raise UnusableServer("does not count the tokens of each sample in its stream; the vote needs a vLLM server")
        choice, tokens = chunk.choices[0], chunk.usage.completion_tokens
        index = choice.index
        if not 0 <= index < self._request.n:
            raise ServerLost(f"it sent sample {index} of {self._request.n}")
        if not self._counts[index] <= tokens <= _MOST_TOKENS:
            raise ServerLost(f"it counts {tokens} tokens in a sample that had {self._counts[index]}")
        self._texts[index].append(replace_surrogates(choice.text))
        if choice.logprobs:
            self._logprobs[index] += [each for each in choice.logprobs.token_logprobs if each is not None]
        self._token_ids[index] += choice.token_ids or []
        self.tokens += tokens - self._counts[index]
        self._counts[index] = tokens
        return self._finish(index, choice.finish_reason) if choice.finish_reason else None

    def _finish(self, index: int, reason: str) -> Completion:
        tokens = self._counts[index]
        if reason not in ("stop", "length"):  # "abort": the server shuts down, or another client ended it
            raise ServerLost(f"it ended a sample early, with finish_reason {read_name(reason)!r}")
        if reason == "length" and tokens < self._max_tokens:
            raise UnusableServer(
                f"cuts answers at {tokens} tokens where {self._max_tokens} were asked for; restart it without "
                "max_new_tokens in its generation config, or take it out of voting.servers"
            )
        self.missing -= 1
        text = "".join(self._texts[index])
        seed, logprob = self._request.seed + index, self._average_logprob(index)
        completion = Completion.from_text(self._request, seed, text, tokens, reason == "length", logprob)
        return replace(completion, token_ids=self._find_token_ids(index)) if self._request.keep_tokens else completion

    def _average_logprob(self, index: int) -> float | None:
        """Return the mean log-prob of a finished sample; None where it was not asked for or there is no token."""
        found, tokens = self._logprobs[index], self._counts[index]
        if not self._request.logprobs or not tokens:
            return None
        if len(found) != tokens:
            raise UnusableServer(
                f"returns {len(found)} log-probs for {tokens} tokens; the vote needs a vLLM server with log-probs, or "
                "voting.rule without them"
            )
        return sum(found) / tokens

    def _find_token_ids(self, index: int) -> tuple[int, ...]:
        """Return the tokens of a finished sample. Raises UnusableServer where the server does not send all of them."""
        found = tuple(self._token_ids[index])
        if len(found) != self._counts[index]:
            raise UnusableServer(
                f"sends {len(found)} of the {self._counts[index]} tokens of a sample, but votes that are first "
                "rollouts need them; take it out of voting.servers, or set training.stage1.first_rollouts=engines"
            )
        return found
