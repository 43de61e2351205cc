"""Async client of an OpenAI-compatible chat endpoint, on aiohttp alone.

One keep-alive session, bounded concurrency, and retries that wait a random time up to a doubling bound
(full jitter), or what Retry-After says. A waiting retry holds no slot, so new work goes on meanwhile.
The key travels in the Authorization header only, and is cut out of whatever the server says back.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp

from medssr_dist.config import Endpoint
from medssr_dist.errors import InputError
from medssr_dist.synthesis.prompts import request_body

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 30.0
LONGEST_RETRY_AFTER_S = 600.0  # a server that asks for more has run out of quota: give the request up
_RETRIED_STATUS = {408, 409, 425, 429}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class RequestFailed(Exception):
    """A request that got no reply after all its tries; the endpoint may still answer others."""


class _TryAgain(Exception):
    """One try failed in a way that another may not. `wait_s` is what the server asked for, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Reply:
    """The text of a reply, its cost in tokens as the server counts them, and the model that answered."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str


class ChatClient:
    """`async with ChatClient(endpoint) as client: reply = await client.complete(messages)`."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.attempts = 0
        self._url = _check_url(endpoint.base_url) + "/chat/completions"
        self._key = endpoint.api_key.get_secret_value() if endpoint.api_key else None
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._stopped = asyncio.Event()
        self._contacted = False

    async def __aenter__(self) -> ChatClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the semaphore is the limit
            timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout_s),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            trust_env=urlsplit(self._url).hostname not in _LOOPBACK,  # a cluster's proxy, never for loopback
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    def stop(self) -> None:
        """Make no further tries: requests on the wire finish, those waiting to be retried fail."""
        self._stopped.set()

    async def complete(self, messages: list[dict[str, str]]) -> Reply:
        """Send one chat request and return its reply.

        Raises:
            InputError: the endpoint refuses the key or the request, or was never reached.
            RequestFailed: no reply after `endpoint.retries` further tries.
        """
        body = request_body(messages, self.endpoint)
        for number in range(self.endpoint.retries + 1):
            try:
                async with self._slots:
                    return await self._try(body)
            except _TryAgain as failure:
                reason = str(failure)
                if number < self.endpoint.retries:
                    await self._wait(number, failure)
        if not self._contacted:
            raise InputError(
                f"endpoint {self.endpoint.base_url} is down: {reason}; start it, or correct synthesis.endpoint.base_url"
            )
        raise RequestFailed(reason)

    async def _wait(self, number: int, failure: _TryAgain) -> None:
        seconds = failure.wait_s
        if seconds is None:
            seconds = random.uniform(0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2**number))
        if seconds > LONGEST_RETRY_AFTER_S:
            raise RequestFailed(f"{failure} (the server asks to wait {seconds:.0f} s)")
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise RequestFailed(str(failure))

    async def _try(self, body: dict) -> Reply:
        self.attempts += 1
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                self._contacted = True
                if response.status != 200:
                    raise await self._refusal(response)
                return _read_reply(json.loads(await response.read()), self.endpoint.model)
        except asyncio.TimeoutError:
            raise _TryAgain(f"no whole reply within timeout_s = {self.endpoint.timeout_s:g}") from None
        except aiohttp.InvalidURL:
            raise InputError(f"synthesis.endpoint.base_url = {self.endpoint.base_url!r} is not a valid URL") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryAgain(self._clean(f"{type(error).__name__}: {error}")) from None
        except ValueError:  # not JSON, or not UTF-8
            raise _TryAgain("the reply is not JSON") from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        """The exception that a status other than 200 stands for."""
        status, where = response.status, self.endpoint.base_url
        if status in _RETRIED_STATUS or status >= 500:
            return _TryAgain(f"HTTP {status}", retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            return InputError(
                f"endpoint {where} refuses the key (HTTP {status}); set synthesis.endpoint.api_key to a variable "
                "that holds a valid key for it"
            )
        said = self._clean(" ".join((await response.text(errors="replace")).split())[:300])
        return InputError(
            f"endpoint {where} refuses the request (HTTP {status}: {said or response.reason}); check "
            f"synthesis.endpoint.base_url and model = {self.endpoint.model!r}"
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in its seconds or its HTTP-date form; None if it says nothing."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _check_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"synthesis.endpoint.base_url = {base_url!r} is not of the form https://host/v1 (or offline-teacher)"
        )
    if parts.password or parts.username:
        raise InputError("synthesis.endpoint.base_url holds a user name or key; give it as synthesis.endpoint.api_key")
    return base_url.rstrip("/")


def _read_reply(payload: object, model: str) -> Reply:
    """The reply in a chat completion. Raises _TryAgain when the JSON is something else."""
    try:
        text = payload["choices"][0]["message"]["content"] or ""
        usage = payload.get("usage") or {}
        # A lone surrogate (half an emoji, cut by a token limit) has no UTF-8 form.
        return Reply(
            text=text.encode("utf-8", "replace").decode("utf-8"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            model=str(payload.get("model") or model),
        )
    except (TypeError, KeyError, IndexError, AttributeError):
        raise _TryAgain("the reply is JSON, but not a chat completion") from None
