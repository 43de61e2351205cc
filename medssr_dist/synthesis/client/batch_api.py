"""OpenAI's Batch API at one endpoint: upload a file, create a batch, poll its state, download the answers.

A call that fails for a reason that may pass (load, server errors, resets, answers that are cut short or not JSON) is
retried after a random wait with an exponentially growing bound (full jitter), or after Retry-After, until
`retry.patience_s` is over. Only the creation of a batch must not be done twice: before it is retried, the batch is
searched in the server's list.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.api_key import scrub
from medssr_dist.synthesis.client.chat_client import (
    ChatClient,
    KeyRefused,
    NoReply,
    NotAnEndpoint,
    PromptRefused,
    Reply,
    TryFailed,
)
from medssr_dist.synthesis.client.dispatcher import backoff_seconds

CHAT_PATH = "/v1/chat/completions"
GONE = "gone"  # the status of a batch that the server does not know
_ENDED = ("completed", "failed", "expired", "cancelled", GONE)
_BUFFER_BYTES = 2**22  # a line of an answer file may be twice as long
_PAGE = 100
_T = TypeVar("_T")


class StopRequested(Exception):
    """The runner was stopped during a wait."""


class BatchError(NamedTuple):
    """Why a batch failed as a whole. Example: BatchError("invalid_line", "not a request")."""

    code: str | None
    message: str


class BatchAnswer(NamedTuple):
    """The outcome of one request of a batch; `custom_id` is the one that the request was given."""

    custom_id: str | None
    outcome: Reply | NoReply


@dataclass(frozen=True)
class BatchState:
    """The state of a batch as the server reports it.

    Attributes:
        status: OpenAI's status, or GONE if the server does not know the batch.
        answered: requests answered so far, with success or not.
        output_file_id, error_file_id: the files of answers, None if there are none.
        errors: why it failed as a whole.

    Example: BatchState("completed", answered=20, output_file_id="file-7")
    """

    status: str
    answered: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[BatchError, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether no further answer will come."""
        return self.status in _ENDED


class BatchApi(ChatClient):
    """`async with BatchApi(endpoint, synthesis, pause) as api: file_id = await api.upload(path)`.

    Args:
        pause: waits so many seconds; raises StopRequested if the runner is stopped.

    Raises:
        InputError: the key or a call is refused, or calls have failed for `retry.patience_s`.
    """

    def __init__(self, endpoint: Endpoint, synthesis: Synthesis, pause: Callable[[float], Awaitable[None]]):
        super().__init__(endpoint, synthesis)
        self._pause = pause
        self._base_url = endpoint.base_url.rstrip("/")
        # A whole file may take long; a transfer has failed if nothing arrives for first_byte_s.
        self._timeout = aiohttp.ClientTimeout(sock_connect=self._retry.connect_s, sock_read=self._retry.first_byte_s)

    async def upload(self, path: Path) -> str:
        """Upload a file of requests. Return the server's id of the file."""

        async def try_once() -> str:
            with open(path, "rb") as file:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", file, filename=path.name, content_type="application/jsonl")
                body = form()
                headers = {"Content-Type": body.content_type}  # the session's default is that of chat requests
                return str((await self._fetch_json("id", "POST", "/files", data=body, headers=headers))["id"])

        return await self._retry_calls(try_once)

    async def create(self, file_id: str, metadata: dict[str, str]) -> str:
        """Create the batch that `metadata` identifies, exactly once. Return the server's id of the batch."""
        order = {"input_file_id": file_id, "endpoint": CHAT_PATH, "completion_window": "24h", "metadata": metadata}
        may_exist = False

        async def try_once() -> str:
            nonlocal may_exist
            known = await self._find(metadata) if may_exist else None
            may_exist = True
            return known or str((await self._fetch_json("id", "POST", "/batches", json=order))["id"])

        return await self._retry_calls(try_once)

    async def find(self, metadata: dict[str, str]) -> str | None:
        """Return the server's id of the batch that has this metadata, or None if there is none."""
        return await self._retry_calls(lambda: self._find(metadata))

    async def read_state(self, batch_id: str, metadata: dict[str, str]) -> BatchState:
        """Return the batch's state; GONE if the server knows neither its id nor its metadata."""

        async def try_once() -> BatchState:
            try:
                return _parse_state(await self._fetch_json("status", "GET", f"/batches/{batch_id}"))
            except NotAnEndpoint as failure:  # a 404 may come from a proxy: the list of batches decides
                if await self._find(metadata) is None:
                    return BatchState(GONE)
                raise TryFailed(str(failure)) from None

        return await self._retry_calls(try_once)

    async def read_answers(self, file_id: str) -> list[BatchAnswer]:
        """Download a file of answers."""

        async def try_once() -> list[dict[str, Any]]:
            async with self._call("GET", f"/files/{file_id}/content", read_bufsize=_BUFFER_BYTES) as response:
                return [_parse_object(line) async for line in response.content if line.strip()]

        lines = await self._retry_calls(try_once)
        return [BatchAnswer(line.get("custom_id"), self._parse_outcome(line)) for line in lines]

    def _parse_outcome(self, line: dict[str, Any]) -> Reply | NoReply:
        """Return the outcome in one line of an answer file."""
        response = line.get("response")
        if not response:
            return TryFailed(scrub(f"no reply: {line.get('error')}", self.endpoint.api_key), may_be_billed=False)
        answer = json.dumps(response.get("body")).encode()
        try:
            if response.get("status_code") == 200:
                return self._parse_reply(answer)
            return self._classify_status(int(response.get("status_code") or 500), {}, answer)
        except NoReply as failure:
            return failure

    async def _find(self, metadata: dict[str, str]) -> str | None:
        query = {"limit": str(_PAGE)}
        while True:
            page = await self._fetch_json("data", "GET", "/batches", params=query)
            for batch in page["data"]:
                if (batch.get("metadata") or {}).items() >= metadata.items():
                    return str(batch["id"])
            if not page.get("has_more") or not page["data"]:
                return None
            query["after"] = page["data"][-1]["id"]

    async def _retry_calls(self, try_once: Callable[[], Awaitable[_T]]) -> _T:
        """Call `try_once` until it succeeds or patience is over."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await try_once()
            except (KeyRefused, PromptRefused, NotAnEndpoint) as refusal:
                raise self._refusal_error(refusal) from None
            except NoReply as failure:
                failures += 1
                seconds = backoff_seconds(failures, getattr(failure, "retry_after", None))
                if time.monotonic() + seconds - began > self._retry.patience_s:
                    raise InputError(
                        f"calls to endpoint {self.endpoint.base_url} failed for retry.patience_s = "
                        f"{self._retry.patience_s:g} s (last: {failure}); run the same command again once it works"
                    ) from None
            await self._pause(seconds)

    def _refusal_error(self, refusal: NoReply) -> InputError:
        """Return the error that ends the run after a refusal that no retry can change."""
        where = self.endpoint.base_url
        if isinstance(refusal, KeyRefused):
            return InputError(
                f"endpoint {where} refuses the key ({refusal}); set its api_key to a variable that holds a valid key"
            )
        return InputError(
            f"endpoint {where} refuses the batch ({refusal}); check model = {self.endpoint.model!r} and json_schema, "
            "and that it offers the Batch API, or use synthesis.transport=chat"
        )

    async def _fetch_json(self, key: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the JSON object that a call is answered with; it must hold `key`."""
        async with self._call(method, path, **options) as response:
            answer = _parse_object(await response.read())
        if key not in answer:
            raise TryFailed(f"the answer has no {key!r}")
        return answer

    @asynccontextmanager
    async def _call(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a response of status 200. Raises NoReply for any other status and for errors within the block."""
        options |= {"allow_redirects": False, "timeout": self._timeout}
        try:
            async with self._session.request(method, self._base_url + path, **options) as response:
                if response.status != 200:
                    raise self._classify_status(response.status, response.headers, await response.read())
                yield response
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._classify_error(error) from None


def _parse_state(batch: dict[str, Any]) -> BatchState:
    counts = batch.get("request_counts") or {}
    errors = (batch.get("errors") or {}).get("data") or []
    return BatchState(
        status=batch["status"],
        answered=counts.get("completed", 0) + counts.get("failed", 0),
        output_file_id=batch.get("output_file_id"),
        error_file_id=batch.get("error_file_id"),
        errors=tuple(BatchError(error.get("code"), str(error.get("message"))) for error in errors),
    )


def _parse_object(data: bytes) -> dict[str, Any]:
    """Return `data` as a JSON object. Raises TryFailed if it is not one: a proxy's page, or half an answer."""
    try:
        value = json.loads(data)
    except ValueError:
        raise TryFailed("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise TryFailed("the answer is not a JSON object")
    return value
