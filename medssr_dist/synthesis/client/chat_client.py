"""One try of one chat request at an OpenAI-compatible endpoint, with aiohttp.

A try ends in a `Reply` or in `NoReply`, whose `failure` says what it is about (`runtime/http/api_failure.py`). The
dispatcher decides when and where to retry. The API key is sent in one header only, and is removed from every text that
the server returns.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.api_key import build_auth_header
from medssr_dist.runtime.http.api_failure import ApiFailure, classify_answer, is_limit_refused, quote_words
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import ACCEPT_ENCODING, BadBody, HttpAnswer, read_answer
from medssr_dist.runtime.http.proxy import find_proxy
from medssr_dist.runtime.http.retry_hints import read_pause
from medssr_dist.synthesis.client.chat_reply import NoReply, read_chat_reply, try_failed
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT, LimitName, build_request_body

_KEEPALIVE_S = 60.0
_MOST_PAUSE_S = 60.0  # a limit may be renewed only in a day; the next refusal then says so
_SECRET_QUERY = re.compile(r"key|token|secret|sig|password|passwd|auth|credential", re.IGNORECASE)
# Words with which a server refuses the name of the parameter, and not its value.
_NAME_REFUSED = re.compile(
    r"max_completion_tokens|unsupported|not support|unknown|unrecogni|unexpected|not permitted", re.I
)
_VALUE_REFUSED = re.compile(r"too (?:large|big|high|small)|at most|exceed|less than|greater than|between", re.I)


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


class ChatClient:
    """`async with ChatClient(endpoint, synthesis) as client: reply = await client.ask(messages)`.

    Attributes:
        limit_name: the parameter that limits the tokens of a reply, as the server takes it.
        paused_until: monotonic time until which the server's headers say that a limit has nothing left.

    Raises:
        InputError: the address, the key or the proxy is not usable; raised before anything is sent.
    """

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis, response_format: Mapping[str, Any] = RESPONSE_FORMAT):
        self.endpoint = endpoint
        self.paused_until = 0.0
        self._response_format = response_format
        self._synthesis = synthesis
        self._retry = synthesis.retry
        self._url = build_api_url(endpoint.base_url, "/chat/completions")
        self._proxy = find_proxy(self._url)
        self.limit_name: LimitName = "max_tokens"
        self._headers = {
            "Content-Type": "application/json",
            **ACCEPT_ENCODING,
            **build_auth_header(endpoint.api_key, f"synthesis.endpoints: {endpoint.base_url}", endpoint.api_key_header),
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
            proxy=self._proxy,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Send one chat request once; raises NoReply if it brings no reply.

        A server that refuses `max_tokens` by its name gets the same request with `max_completion_tokens`.
        """
        name = self.limit_name
        try:
            return await self._post(self.build_body(messages))
        except NoReply as refusal:
            if not self.accept_limit_name(refusal.failure, name):
                raise
        return await self._post(self.build_body(messages))

    def build_body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the JSON body of a chat request, with the name of the token limit that the server takes."""
        return build_request_body(
            messages, self.endpoint, self._synthesis, self._response_format, limit_name=self.limit_name
        )

    def accept_limit_name(self, failure: ApiFailure, sent: LimitName) -> bool:
        """Use `max_completion_tokens` from now on if `failure` refuses `sent` by its name. Return whether it does."""
        words = failure.reason
        refuses_name = _NAME_REFUSED.search(words) and not _VALUE_REFUSED.search(words)
        if sent != "max_tokens" or not is_limit_refused(failure) or not refuses_name:
            return False
        self.limit_name = "max_completion_tokens"
        return True

    async def _post(self, body: dict[str, Any]) -> Reply:
        try:
            data = msgspec.json.encode(body)
            async with self._session.post(self._url, data=data, allow_redirects=False) as response:
                answer = await read_answer(response)
        except (TimeoutError, aiohttp.ClientError, OSError, BadBody) as error:
            raise NoReply(self._classify_error(error)) from None
        if pause := read_pause(answer.headers):
            self.paused_until = max(self.paused_until, time.monotonic() + min(pause, _MOST_PAUSE_S))
        if 200 <= answer.status < 300:
            return self._read_reply(answer)
        raise NoReply(classify_answer(answer, self.endpoint.api_key))

    def _read_reply(self, answer: HttpAnswer) -> Reply:
        parts = read_chat_reply(answer, self.endpoint.api_key)
        return Reply(
            parts.text,
            parts.prompt_tokens or 0,
            parts.completion_tokens or 0,
            parts.model or self.endpoint.model,
            self.endpoint,
            parts.finish_reason,
        )

    def _classify_error(self, error: Exception) -> ApiFailure:
        """Return what an error of the connection or of the body is about."""
        retry = self._retry
        via = f" (through the proxy {_name_host(self._proxy)})" if self._proxy else ""
        if isinstance(error, BadBody):
            scope = Scope.ADDRESS if "Content-Encoding" in str(error) else Scope.TRY
            return ApiFailure(scope, str(error), may_be_billed=True)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return ApiFailure(Scope.UNREACHABLE, f"no connection within connect_s = {retry.connect_s:g}{via}")
        words = quote_words(f"{type(error).__name__}: {error}", self.endpoint.api_key) + via
        if isinstance(error, aiohttp.InvalidURL):
            return ApiFailure(Scope.ADDRESS, words)
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError | aiohttp.ClientSSLError):
            return ApiFailure(Scope.UNREACHABLE, words)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return try_failed(f"nothing came for first_byte_s = {retry.first_byte_s:g}")
        if isinstance(error, asyncio.TimeoutError):
            return try_failed(f"no whole reply within whole_s = {retry.whole_s:g}")
        return try_failed(words)


def build_api_url(base_url: str, path: str) -> URL:
    """Return the address of `path` below `base_url`, whose query is kept (Azure's `?api-version=`).

    Raises:
        InputError: `base_url` is no URL, or holds a password or a key.
    """
    try:
        url = URL(base_url)
        port = url.port  # noqa: F841 - a port that is no number is noticed here
    except ValueError:
        url = URL()
    if url.user or url.password:
        raise InputError("a base_url in synthesis.endpoints holds a user name or key; give it as api_key")
    if secret := next(filter(_SECRET_QUERY.search, url.query), None):
        raise InputError(
            f"a base_url in synthesis.endpoints holds a key in its query (?{quote_words(secret, None)[:40]}=...); give "
            "it as api_key, and the name of its header as api_key_header"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(
            f"synthesis.endpoints: base_url = {base_url!r} is not of the form https://host/v1 (or offline-teacher)"
        )
    folder = url.raw_path.rstrip("/").removesuffix("/chat/completions")
    return url.with_path(folder + path, encoded=True, keep_query=True)


def _name_host(address: str | None) -> str:
    """Return host and port of a proxy, without its password."""
    proxy = URL(address or "")
    return f"{proxy.host}:{proxy.port}"
