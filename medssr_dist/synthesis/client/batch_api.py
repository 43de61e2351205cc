"""OpenAI's Batch API at one endpoint: upload a file, create a batch, poll its state, download the answers.

A call that fails for a reason that may pass (load, server errors, resets, answers that are cut short or not JSON) is
retried after a random wait with an exponentially growing bound (full jitter), or after Retry-After, until
`retry.patience_s` is over. Only the creation of a batch must not be done twice: before it is retried, the batch is
searched in the server's list.

Answers are handed over one by one as they are read: a line that cannot be read costs that line alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.errors import InputError
from medssr_dist.runtime.http.api_failure import ApiFailure, classify_answer, classify_error, quote_words
from medssr_dist.runtime.http.error_body import describe_error
from medssr_dist.runtime.http.event_stream import read_lines
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import BadBody, HttpAnswer, parse_json, read_answer, read_count, stream_body
from medssr_dist.synthesis.client.backoff import backoff_seconds
from medssr_dist.synthesis.client.chat_client import ChatClient, Reply, build_api_url
from medssr_dist.synthesis.client.chat_reply import NoReply, try_failed

CHAT_PATH = "/v1/chat/completions"
GONE = "gone"  # the status of a batch that the server does not know
_ENDED = ("completed", "failed", "expired", "cancelled", GONE)
_PAGE = 100
_MOST_PAGES = 1000
_DOWNLOADS = 3  # of a file with lines that cannot be read
_YIELD_EVERY = 256  # lines after which the event loop may do other work
_ID = re.compile(r"(?!.*\.\.)[\w.:=~@+/-]{1,300}")
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
    outcome: Reply | ApiFailure


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
                return _read_id((await self._fetch_json("id", "POST", "/files", data=body, headers=headers))["id"])

        return await self._retry_calls(try_once)

    async def create(self, file_id: str, metadata: dict[str, str]) -> str:
        """Create the batch that `metadata` identifies, exactly once. Return the server's id of the batch."""
        order = {"input_file_id": file_id, "endpoint": CHAT_PATH, "completion_window": "24h", "metadata": metadata}
        may_exist = False

        async def try_once() -> str:
            nonlocal may_exist
            known = await self._find(metadata) if may_exist else None
            may_exist = True
            return known or _read_id((await self._fetch_json("id", "POST", "/batches", json=order))["id"])

        return await self._retry_calls(try_once)

    async def find(self, metadata: dict[str, str]) -> str | None:
        """Return the server's id of the batch that has this metadata, or None if there is none."""
        return await self._retry_calls(lambda: self._find(metadata))

    async def read_state(self, batch_id: str, metadata: dict[str, str]) -> BatchState:
        """Return the batch's state; GONE if the server knows neither its id nor its metadata."""

        async def try_once() -> BatchState:
            try:
                return _parse_state(await self._fetch_json("status", "GET", f"/batches/{batch_id}"))
            except NoReply as error:  # a 404 may come from a proxy: the list of batches decides
                if error.failure.scope is not Scope.ADDRESS:
                    raise
                if await self._find(metadata) is None:
                    return BatchState(GONE)
                raise NoReply(try_failed(error.failure.reason)) from None

        return await self._retry_calls(try_once)

    async def read_answers(self, file_id: str, take: Callable[[BatchAnswer], None]) -> int:
        """Download a file of answers. Return the number of its lines that cannot be read.

        Args:
            take: gets each answer as it is read; gets it again if the download has to be repeated.
        """

        async def try_once() -> int:
            unreadable = 0
            async with self._call("GET", f"/files/{file_id}/content") as response:
                number = 0
                async for line in read_lines(stream_body(response)):
                    answer = self._parse_line(line)
                    unreadable += answer is None and (line is None or bool(line.strip()))
                    if answer:
                        take(answer)
                    number += 1
                    if number % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
            return unreadable

        for download in range(1, _DOWNLOADS + 1):
            unreadable = await self._retry_calls(try_once)
            if not unreadable or download == _DOWNLOADS:
                break
            await self._pause(backoff_seconds(download))
        return unreadable

    def _parse_line(self, line: bytes | None) -> BatchAnswer | None:
        """Return the answer in one line of an answer file; None if it holds none."""
        try:
            value = parse_json(line or b"")
        except ValueError:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
            return None
        return BatchAnswer(value["custom_id"], self.parse_outcome(value))

    def parse_outcome(self, line: dict[str, Any]) -> Reply | ApiFailure:
        """Return the outcome in one line of an answer file, whatever its form."""
        key, response = self.endpoint.api_key, line.get("response")
        if not isinstance(response, dict) or not response:
            said = describe_error(line.get("error") or response)
            failure = classify_error(HttpAnswer(500), said, key)
            return replace(failure, reason=f"no reply: {quote_words(said.message, key)}", may_be_billed=False)
        body = response.get("body")
        status = read_count(response.get("status_code")) or (
            200 if isinstance(body, dict) and "choices" in body else 500
        )
        try:
            data = body if isinstance(body, str) else json.dumps(body)
            answer = HttpAnswer(status, {}, data.encode("utf-8", "surrogatepass"))
            return self._read_reply(answer) if 200 <= status < 300 else classify_answer(answer, key)
        except NoReply as error:
            return error.failure
        except RecursionError:
            return try_failed("the reply is too deeply nested")

    async def _find(self, metadata: dict[str, str]) -> str | None:
        """Return the id of the batch with this metadata. Raises NoReply if the server's list does not end."""
        query = {"limit": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            page = await self._fetch_json("data", "GET", "/batches", params=query)
            batches = page["data"]
            if not isinstance(batches, list) or not all(isinstance(batch, dict) for batch in batches):
                raise NoReply(try_failed("its list of batches is none"))
            for batch in batches:
                known = batch.get("metadata")
                if isinstance(known, dict) and known.items() >= metadata.items():
                    return _read_id(batch.get("id"))
            if not page.get("has_more") or not batches:
                return None
            last = _read_id(batches[-1].get("id"))
            if last == query.get("after"):
                break
            query["after"] = last
        raise NoReply(try_failed("its list of batches does not end"))

    async def _retry_calls(self, try_once: Callable[[], Awaitable[_T]]) -> _T:
        """Call `try_once` until it succeeds or patience is over."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await try_once()
            except NoReply as error:
                failure = error.failure
                if failure.scope not in (Scope.TRY, Scope.LOAD, Scope.UNREACHABLE):
                    raise self.refusal_error(failure) from None
                failures += 1
                seconds = backoff_seconds(failures, failure.retry_after)
                if time.monotonic() + seconds - began > self._retry.patience_s:
                    raise InputError(
                        f"calls to endpoint {self.endpoint.base_url} failed for retry.patience_s = "
                        f"{self._retry.patience_s:g} s (last: {failure.reason}); run the same command again once it "
                        "works"
                    ) from None
            await self._pause(seconds)

    def refusal_error(self, failure: ApiFailure) -> InputError:
        """Return the error that ends the run after a refusal that no retry can change."""
        where, reason = self.endpoint.base_url, failure.reason
        if failure.scope is Scope.KEY:
            return InputError(
                f"endpoint {where} refuses the key ({reason}); set its api_key to a variable that holds a valid key"
            )
        if failure.scope is Scope.CREDIT:
            return InputError(
                f"endpoint {where} says that the account has no credit or quota left ({reason}); add credit, then run "
                "the same command"
            )
        return InputError(
            f"endpoint {where} refuses the batch ({reason}); check model = {self.endpoint.model!r} and json_schema, "
            "and that it offers the Batch API, or use synthesis.transport=chat"
        )

    async def _fetch_json(self, key: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the JSON object that a call is answered with; it must hold `key`."""
        async with self._call(method, path, **options) as response:
            answer = await read_answer(response)
        try:
            value = parse_json(answer.body, answer.headers.get("Content-Type", ""))
        except ValueError:
            raise NoReply(try_failed("the answer is not JSON")) from None
        if not isinstance(value, dict) or key not in value:
            raise NoReply(try_failed(f"the answer has no {key!r}"))
        return value

    @asynccontextmanager
    async def _call(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a response of status 2xx. Raises NoReply for any other status and for errors within the block."""
        options |= {"allow_redirects": False, "timeout": self._timeout}
        try:
            async with self._session.request(
                method, build_api_url(self.endpoint.base_url, path), **options
            ) as response:
                if not 200 <= response.status < 300:
                    raise NoReply(classify_answer(await read_answer(response), self.endpoint.api_key))
                yield response
        except (TimeoutError, aiohttp.ClientError, ConnectionError, BadBody) as error:
            raise NoReply(self._classify_error(error)) from None


def _parse_state(batch: dict[str, Any]) -> BatchState:
    """Read a batch's state. Raises NoReply if it is none."""
    status = batch.get("status")
    if not isinstance(status, str):
        raise NoReply(try_failed("the batch has no status"))
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    errors = batch.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else errors
    return BatchState(
        status=quote_words(status, None),
        answered=(read_count(counts.get("completed")) or 0) + (read_count(counts.get("failed")) or 0),
        output_file_id=_read_id(batch["output_file_id"]) if batch.get("output_file_id") else None,
        error_file_id=_read_id(batch["error_file_id"]) if batch.get("error_file_id") else None,
        errors=tuple(
            BatchError(str(error.get("code") or ""), str(error.get("message")))
            for error in (listed if isinstance(listed, list) else [])
            if isinstance(error, dict)
        ),
    )


def _read_id(value: Any) -> str:
    """Return the id of a file or batch, which becomes a part of an address. Raises NoReply if it cannot."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise NoReply(try_failed("the server names no usable id"))
    return value
