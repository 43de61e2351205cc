"""OpenAI's Batch API at one endpoint: files and batches, every call borne through faults for a while.

A call that fails in a way that passes (load, server errors, resets, answers cut short or not JSON) is made
again after a random wait up to a doubling bound (full jitter), or what Retry-After says, until patience is
over. A creation is the one call that must not be done twice: before it is made again, the batch is looked
for in the server's list.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.api_key import scrub
from medssr_dist.synthesis.client.chat_client import (
    ChatClient,
    Failed,
    KeyRefused,
    NoReply,
    NotAnEndpoint,
    PromptRefused,
    Reply,
)
from medssr_dist.synthesis.client.dispatcher import wait_s

CHAT_PATH = "/v1/chat/completions"
_BUFFER_BYTES = 2**22  # a line of an answer file may be twice as long
_PAGE = 100
_T = TypeVar("_T")


class StopAsked(Exception):
    """The runner was told to stop while something was waited for."""


class BatchApi(ChatClient):
    """`async with BatchApi(endpoint, synthesis, pause) as api: file_id = await api.upload(path)`.

    Args:
        pause: waits so many seconds; raises StopAsked when the wait is cut short by a stop.

    Raises:
        InputError: the key or a call is refused, or patience (`retry.patience_s`) is over.
    """

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis, pause: Callable[[float], Awaitable[None]]):
        super().__init__(endpoint, synthesis)
        self._pause = pause
        self._base_url = endpoint.base_url.rstrip("/")
        # A file may take long as a whole; it is dead when nothing moves.
        self._timeout = aiohttp.ClientTimeout(sock_connect=self._retry.connect_s, sock_read=self._retry.first_byte_s)

    async def upload(self, path: Path) -> str:
        """Put a file of requests up. Returns the server's name for it."""

        async def once() -> str:
            with open(path, "rb") as file:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", file, filename=path.name, content_type="application/jsonl")
                body = form()
                headers = {"Content-Type": body.content_type}  # the session's is of chat requests
                return (await self._json("id", "POST", "/files", data=body, headers=headers))["id"]

        return await self._patiently(once)

    async def create(self, file_id: str, metadata: dict[str, str]) -> str:
        """Create the batch that `metadata` identifies, once. Returns the server's name for it."""
        asked = {"input_file_id": file_id, "endpoint": CHAT_PATH, "completion_window": "24h", "metadata": metadata}
        may_exist = False

        async def once() -> str:
            nonlocal may_exist
            known = await self._find(metadata) if may_exist else None
            may_exist = True
            return known or (await self._json("id", "POST", "/batches", json=asked))["id"]

        return await self._patiently(once)

    async def find(self, metadata: dict[str, str]) -> str | None:
        """The server's name for the batch that has this metadata, None if it has none such."""
        return await self._patiently(lambda: self._find(metadata))

    async def state(self, batch_id: str, metadata: dict[str, str]) -> dict | None:
        """The batch as the server tells it; None when it is gone: not known by its name, nor in the list."""

        async def once() -> dict | None:
            try:
                return await self._json("status", "GET", f"/batches/{batch_id}")
            except NotAnEndpoint as failure:  # a proxy may say so too: the list decides
                if await self._find(metadata) is None:
                    return None
                raise Failed(str(failure)) from None

        return await self._patiently(once)

    async def read(self, file_id: str) -> list[dict]:
        """The lines of an answer file."""

        async def once() -> list[dict]:
            async with self._call("GET", f"/files/{file_id}/content", read_bufsize=_BUFFER_BYTES) as response:
                return [_object(line) async for line in response.content if line.strip()]

        return await self._patiently(once)

    def outcome(self, line: dict) -> Reply | NoReply:
        """What one line of an answer file says."""
        response = line.get("response")
        if not response:
            return Failed(scrub(f"no reply: {line.get('error')}", self.endpoint.api_key), may_be_billed=False)
        answer = json.dumps(response.get("body")).encode()
        try:
            if response.get("status_code") == 200:
                return self._reply(answer)
            return self._refusal(int(response.get("status_code") or 500), {}, answer)
        except NoReply as failure:
            return failure

    async def _find(self, metadata: dict[str, str]) -> str | None:
        query = {"limit": str(_PAGE)}
        while True:
            page = await self._json("data", "GET", "/batches", params=query)
            for batch in page["data"]:
                if (batch.get("metadata") or {}).items() >= metadata.items():
                    return batch["id"]
            if not page.get("has_more") or not page["data"]:
                return None
            query["after"] = page["data"][-1]["id"]

    async def _patiently(self, once: Callable[[], Awaitable[_T]]) -> _T:
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await once()
            except (KeyRefused, PromptRefused, NotAnEndpoint) as refusal:
                raise self._refused(refusal) from None
            except NoReply as failure:
                failures += 1
                seconds = wait_s(failures, getattr(failure, "after", None))
                if time.monotonic() + seconds - began > self._retry.patience_s:
                    raise InputError(
                        f"endpoint {self.endpoint.base_url} did not do what was asked for retry.patience_s = "
                        f"{self._retry.patience_s:g} s (last: {failure}); run the same command again once it works"
                    ) from None
            await self._pause(seconds)

    def _refused(self, refusal: NoReply) -> InputError:
        """The end of the run that a refusal for good stands for."""
        where = self.endpoint.base_url
        if isinstance(refusal, KeyRefused):
            return InputError(
                f"endpoint {where} refuses the key ({refusal}); set its api_key to a variable that holds a valid key"
            )
        return InputError(
            f"endpoint {where} refuses the batch ({refusal}); check model = {self.endpoint.model!r} and json_schema, "
            "and that it offers the Batch API, or use synthesis.transport=chat"
        )

    async def _json(self, key: str, method: str, path: str, **options: Any) -> dict:
        """The JSON object that a call is answered by; it must hold `key`."""
        async with self._call(method, path, **options) as response:
            told = _object(await response.read())
        if key not in told:
            raise Failed(f"the answer has no {key!r}")
        return told

    @asynccontextmanager
    async def _call(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call whose status is 200; anything else, and what goes wrong in the block, is raised as NoReply."""
        options |= {"allow_redirects": False, "timeout": self._timeout}
        try:
            async with self._session.request(method, self._base_url + path, **options) as response:
                if response.status != 200:
                    raise self._refusal(response.status, response.headers, await response.read())
                yield response
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._broken(error) from None


def _object(data: bytes) -> dict:
    """`data` as a JSON object. Raises Failed when it is something else: a proxy's page, or half an answer."""
    try:
        value = json.loads(data)
    except ValueError:
        raise Failed("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise Failed("the answer is not a JSON object")
    return value
