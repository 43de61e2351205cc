"""One try of one chat request at an OpenAI-compatible endpoint, with aiohttp.

A try ends in a `Reply` or in an exception. The class of the exception says what failed: the server is overloaded,
this try failed, or the prompt, the key or the address was refused. The dispatcher decides when and where to retry.
The API key is sent in the Authorization header only, and is removed from every text that the server returns.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from yarl import URL

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.api_key import build_auth_header, read_error_text, scrub
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT, build_request_body

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
# HTTP statuses by what they mean.
_OVERLOADED = {429, 503, 529}
_KEY_REFUSED = {401, 402, 403}
_NO_SUCH_API = {404, 405, 406, 407, 410, 415}
_RETRY = {408, 409, 425}
_MAY_BE_BILLED = {408, 504, 524}  # a gateway stopped waiting; the server behind it may have finished the reply
_BROKEN_OFF = {"abort", "error", "insufficient_system_resource"}  # finish reasons for which another try may pass
_KEEPALIVE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply.

    Attributes:
        text: its text; '' if the content was null.
        prompt_tokens, completion_tokens: its cost in tokens as the server counts them.
        model: the model that answered, as the server reports it.
        endpoint: where it was asked.
        finish_reason: why the reply ended, as the server reports it, such as "stop" or "length"; '' if it does not.

    Example: Reply('{"question": ...}', 812, 140, "gpt-x-2025-01", Endpoint(base_url="https://host/v1", model="gpt-x"))
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    endpoint: Endpoint
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A request that is not sent again. `reason` is "no_reply" or "refused_by_api"; `detail` is for people.

    Example: GaveUp("no_reply", "6 tries failed; the last: HTTP 500: internal error")
    """

    reason: str
    detail: str


class NoReply(Exception):
    """A try that brought no reply. `may_be_billed`: the server received it and may have charged for it."""

    may_be_billed = False


class RequestRefused(NoReply):
    """The server is overloaded or limits the rate; a retry may pass.

    Attributes:
        retry_after: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


class TryFailed(NoReply):
    """This try failed: an error of the server, a timeout, a broken connection or an unusable reply."""

    def __init__(self, reason: str, may_be_billed: bool = True):
        super().__init__(reason)
        self.may_be_billed = may_be_billed


class Unreachable(NoReply):
    """No connection could be opened, so nothing was sent."""


class PromptRefused(NoReply):
    """The API refuses this request for good: content filter, context length, or a value that it does not know."""


class KeyRefused(NoReply):
    """The API refuses the key, or its account has no credit left."""


class NotAnEndpoint(NoReply):
    """The address is not a chat API: it answers HTML or a redirect, or knows neither the path nor the model."""


class ChatClient:
    """`async with ChatClient(endpoint, synthesis) as client: reply = await client.ask(messages)`.

    Raises:
        InputError: the address or the key is not usable; raised before anything is sent.
    """

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis, response_format: Mapping[str, Any] = RESPONSE_FORMAT):
        self.endpoint = endpoint
        self._response_format = response_format
        self._synthesis = synthesis
        self._retry = synthesis.retry
        self._url = build_chat_url(endpoint.base_url)
        self._headers = {
            "Content-Type": "application/json",
            **build_auth_header(endpoint.api_key, f"synthesis.endpoints: {endpoint.base_url}"),
        }

    async def __aenter__(self) -> ChatClient:
        retry = self._retry
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),  # the dispatcher sets the limit
            timeout=aiohttp.ClientTimeout(
                total=retry.whole_s, sock_connect=retry.connect_s, sock_read=retry.first_byte_s
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=find_proxy(self._url),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Send one chat request once. Raises a subclass of NoReply if it brings no reply."""
        body = msgspec.json.encode(build_request_body(messages, self.endpoint, self._synthesis, self._response_format))
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                if response.status == 200:
                    return self._parse_reply(answer)
                raise self._classify_status(response.status, response.headers, answer)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._classify_error(error) from None

    def _parse_reply(self, answer: bytes) -> Reply:
        try:
            payload = _decode(answer)
            choice = payload["choices"][0]
            text = choice["message"]["content"] or ""
            usage = payload.get("usage") or {}
            finish_reason = _read_finish_reason(choice)
            if finish_reason in _BROKEN_OFF:
                raise TryFailed(f"the server broke the reply off (finish_reason {finish_reason!r})")
            return Reply(
                # A lone surrogate (an emoji that the token limit cut in two) cannot be written as UTF-8.
                text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8"),
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
                str(payload.get("model") or self.endpoint.model),
                self.endpoint,
                finish_reason,
            )
        except (ValueError, RecursionError):
            if answer.lstrip().startswith(b"<"):
                raise NotAnEndpoint(f"it answers HTML: {self._quote(answer)}") from None
            raise TryFailed(f"the reply is not JSON: {self._quote(answer)}") from None
        except (TypeError, LookupError, AttributeError):
            raise TryFailed(f"the reply is JSON, but not a chat completion: {self._quote(answer)}") from None

    def _classify_status(self, status: int, headers: Mapping[str, str], answer: bytes) -> NoReply:
        """Return the exception for an HTTP status other than 200."""
        reason = f"HTTP {status}: {self._quote(answer)}"
        if status in _KEY_REFUSED or (status == 429 and b"insufficient_quota" in answer):
            return KeyRefused(reason)
        if status in _OVERLOADED:
            return RequestRefused(reason, parse_retry_after(headers.get("Retry-After"), headers.get("Date")))
        if status in _NO_SUCH_API or 300 <= status < 400:
            return NotAnEndpoint(reason)
        if status in _RETRY or status >= 500 or status < 300:
            return TryFailed(reason, may_be_billed=status in _MAY_BE_BILLED or status < 300)
        return PromptRefused(reason)

    def _classify_error(self, error: Exception) -> NoReply:
        """Return the exception for an error of the connection."""
        retry = self._retry
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Unreachable(f"no connection within connect_s = {retry.connect_s:g}")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
            return Unreachable(scrub(f"{type(error).__name__}: {error}", self.endpoint.api_key))
        if isinstance(error, aiohttp.SocketTimeoutError):
            return TryFailed(f"nothing came for first_byte_s = {retry.first_byte_s:g}")
        if isinstance(error, asyncio.TimeoutError):
            return TryFailed(f"no whole reply within whole_s = {retry.whole_s:g}")
        return TryFailed(scrub(f"{type(error).__name__}: {error}", self.endpoint.api_key))

    def _quote(self, answer: bytes) -> str:
        """Return the server's error text, without the key."""
        return read_error_text(answer, self.endpoint.api_key)


def _read_finish_reason(choice: dict[str, Any]) -> str:
    """Return why a reply ended; "refusal" if the model refused in the field that OpenAI's API has for that."""
    if choice["message"].get("refusal"):
        return "refusal"
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else ""


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None if it is absent or unusable.

    The header holds seconds or an HTTP date. A date is compared with `date`, the server's own Date header, so that
    a wrong or jumping clock on this machine does no harm; without `date`, with this machine's clock.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until, now = _timestamp(value), _timestamp(date)
        if until is None:
            return None
        seconds = until - (time.time() if now is None else now)
    return max(0.0, seconds) if seconds < float("inf") else None


def build_chat_url(base_url: str) -> URL:
    """Return the address for chat requests. Raises InputError if `base_url` is no URL or holds a password."""
    try:
        url = URL(base_url.rstrip("/") + "/chat/completions")
    except ValueError:
        url = URL()
    if url.user or url.password:
        raise InputError("a base_url in synthesis.endpoints holds a user name or key; give it as api_key")
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(
            f"synthesis.endpoints: base_url = {base_url!r} is not of the form https://host/v1 (or offline-teacher)"
        )
    return url


def find_proxy(url: URL) -> str | None:
    """Return the proxy that the environment sets for `url`, or None; loopback has none.

    Looked up once per client: aiohttp's trust_env option would look it up for each request.
    """
    if url.host is None or url.host in _LOOPBACK or proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)


def _timestamp(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, OverflowError):
        return None


def _decode(answer: bytes) -> Any:
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError:  # it refuses a lone surrogate; the standard library accepts one
        return json.loads(answer)
