"""One try at one OpenAI-compatible chat endpoint, on aiohttp alone.

A try ends in a `Reply` or in an exception that says what the failure is about: the load, this try, this
prompt, the key, or the address. When to try again, and where, is for the dispatcher. The key travels in
the Authorization header only, and is cut out of whatever the server says back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from yarl import URL

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.api_key import authorization, scrub, words_of
from medssr_dist.synthesis.prompts import request_body

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_OVERLOADED = {429, 503, 529}
_KEY = {401, 402, 403}
_ADDRESS = {404, 405, 406, 407, 410, 415}
_TRY_AGAIN = {408, 409, 425}
_MAY_BE_BILLED = {408, 504, 524}  # a gateway gave up waiting; the server behind it may have gone on
_KEEPALIVE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The text of a reply, its cost in tokens as the server counts them, the model that it says answered, and where."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A request that is not asked again. `reason` is "no_reply" or "refused_by_api"; `detail` is for people."""

    reason: str
    detail: str


class NoReply(Exception):
    """A try that brought no reply. `may_be_billed`: the request went out, and what became of it is not known."""

    may_be_billed = False


class RequestRefused(NoReply):
    """Refused by load; another try may pass. `after` is what the server asked to wait, seconds, if it did."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


class Failed(NoReply):
    """Failed in a way of its own: an error of the server, a deadline, a broken connection, an unusable reply."""

    def __init__(self, reason: str, may_be_billed: bool = True):
        super().__init__(reason)
        self.may_be_billed = may_be_billed


class Unreachable(NoReply):
    """No connection came about, so nothing was sent."""


class PromptRefused(NoReply):
    """The API refuses this request for good: its content filter, its context length, a value it does not know."""


class KeyRefused(NoReply):
    """The API refuses the key, or the account behind it has run out."""


class NotAnEndpoint(NoReply):
    """What answers is not the chat API: HTML, a redirect, an unknown path or model."""


class ChatClient:
    """`async with ChatClient(endpoint, synthesis) as client: reply = await client.ask(messages)`.

    Raises:
        InputError: the address or the key is not usable, before anything is sent.
    """

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis):
        self.endpoint = endpoint
        self._synthesis = synthesis
        self._retry = synthesis.retry
        self._url = chat_url(endpoint.base_url)
        self._headers = {
            "Content-Type": "application/json",
            **authorization(endpoint.api_key, f"synthesis.endpoints: {endpoint.base_url}"),
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
            proxy=proxy_for(self._url),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Send one chat request once. Raises a kind of NoReply."""
        body = msgspec.json.encode(request_body(messages, self.endpoint, self._synthesis))
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                if response.status == 200:
                    return self._reply(answer)
                raise self._refusal(response.status, response.headers, answer)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._broken(error) from None

    def _reply(self, answer: bytes) -> Reply:
        try:
            payload = _decode(answer)
            text = payload["choices"][0]["message"]["content"] or ""
            usage = payload.get("usage") or {}
            return Reply(
                # Half a surrogate pair (an emoji cut by the token limit) has no UTF-8 form.
                text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8"),
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
                str(payload.get("model") or self.endpoint.model),
                self.endpoint,
            )
        except (ValueError, RecursionError):
            if answer.lstrip()[:1] == b"<":
                raise NotAnEndpoint(f"it answers HTML: {self._said(answer)}") from None
            raise Failed(f"the reply is not JSON: {self._said(answer)}") from None
        except (TypeError, LookupError, AttributeError):
            raise Failed(f"the reply is JSON, but not a chat completion: {self._said(answer)}") from None

    def _refusal(self, status: int, headers: Mapping[str, str], answer: bytes) -> NoReply:
        """What a status other than 200 stands for."""
        reason = f"HTTP {status}: {self._said(answer)}"
        if status in _KEY or (status == 429 and b"insufficient_quota" in answer):
            return KeyRefused(reason)
        if status in _OVERLOADED:
            return RequestRefused(reason, retry_after(headers.get("Retry-After"), headers.get("Date")))
        if status in _ADDRESS or 300 <= status < 400:
            return NotAnEndpoint(reason)
        if status in _TRY_AGAIN or status >= 500 or status < 300:
            return Failed(reason, may_be_billed=status in _MAY_BE_BILLED or status < 300)
        return PromptRefused(reason)

    def _broken(self, error: Exception) -> NoReply:
        """What an exception of the transport stands for."""
        retry = self._retry
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Unreachable(f"no connection within connect_s = {retry.connect_s:g}")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
            return Unreachable(scrub(f"{type(error).__name__}: {error}", self.endpoint.api_key))
        if isinstance(error, aiohttp.SocketTimeoutError):
            return Failed(f"nothing came for first_byte_s = {retry.first_byte_s:g}")
        if isinstance(error, asyncio.TimeoutError):
            return Failed(f"no whole reply within whole_s = {retry.whole_s:g}")
        return Failed(scrub(f"{type(error).__name__}: {error}", self.endpoint.api_key))

    def _said(self, answer: bytes) -> str:
        return words_of(answer, self.endpoint.api_key)


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, in its seconds or its HTTP-date form; None if it says nothing.

    A date is read against `date`, the server's own Date header, so that a clock that is wrong here, or jumps,
    does no harm; without one, against this machine's clock.
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


def chat_url(base_url: str) -> URL:
    """The address to post to. Raises InputError when `base_url` is none, or holds a password."""
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


def proxy_for(url: URL) -> str | None:
    """The environment's proxy for `url`, never for loopback. Asked once: aiohttp's trust_env asks at each request."""
    if url.host in _LOOPBACK or proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)


def _timestamp(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, OverflowError):
        return None


def _decode(answer: bytes) -> dict:
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError:  # stricter than the standard library, which takes half a surrogate pair
        return json.loads(answer)
