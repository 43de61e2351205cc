"""OpenAI's Batch API: upload a file of requests, create a batch, poll its state, download two files of answers.

Everything is kept in memory. The answers are in another order than the requests, as is possible with OpenAI: only
`custom_id` shows which answer belongs to which request.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web

from medssr_dist.offline_teacher.faults import WRONG_SCHEMA, FaultDraws, Faults, Gate, Stats, error_response, misbehave
from medssr_dist.offline_teacher.replies import BadRequest, complete, read_request

_SLICES = 10  # steps in which the progress of a batch advances
_ENDPOINT = "/v1/chat/completions"
_PAGE = 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class TeacherBatch:
    """A batch, with the fields that OpenAI's API reports.

    Example: TeacherBatch("batch_1", "file-1", "24h", {"medssr_run": "4f..", "medssr_part": "0"})
    """

    id: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str]
    endpoint: str = _ENDPOINT
    status: str = "validating"
    created_at: int = field(default_factory=lambda: int(time.time()))
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: dict[str, Any] | None = None
    request_counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})

    def to_json(self) -> dict[str, Any]:
        """Return the batch in OpenAI's format."""
        return {"object": "batch", **vars(self)}


class Batches:
    """The files and batches of one server, and their routes."""

    def __init__(self, random_seed: int, faults: Faults, draws: FaultDraws, gate: Gate, stats: Stats):
        self._random_seed = random_seed
        self._faults = faults
        self._draws = draws
        self._gate = gate
        self._stats = stats
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, TeacherBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def list_routes(self) -> list[web.RouteDef]:
        """Return the HTTP routes of files and batches."""
        return [
            web.post("/v1/files", self._wrap("upload", self._upload)),
            web.get("/v1/files/{id}/content", self._wrap("download", self._download)),
            web.post("/v1/batches", self._wrap("create", self._create)),
            web.get("/v1/batches", self._wrap("list", self._list)),
            web.get("/v1/batches/{id}", self._wrap("poll", self._poll)),
            web.post("/v1/batches/{id}/cancel", self._wrap("cancel", self._cancel)),
        ]

    def _wrap(self, name: str, handler: _Handler) -> _Handler:
        """Return a handler that counts the call and may misbehave instead of calling `handler`."""

        async def answer(request: web.Request) -> web.StreamResponse:
            fault = self._gate.draw_call_fault()
            self._stats.calls[f"{name} {fault or 'ok'}"] += 1
            if fault:
                await request.read()
                return await misbehave(fault, request, self._faults)
            return await handler(request)

        return answer

    async def _upload(self, request: web.Request) -> web.Response:
        fields: dict[str, bytes] = {}
        try:
            async for part in await request.multipart():
                if isinstance(part, BodyPartReader) and part.name:
                    fields[part.name] = bytes(await part.read())
        except (AssertionError, ValueError):
            return error_response(400, "the body is not multipart/form-data")
        if fields.get("purpose") != b"batch" or not fields.get("file"):
            return error_response(400, "a batch file needs the fields purpose=batch and file")
        file_id = self._store(fields["file"])
        return web.json_response(
            {"id": file_id, "object": "file", "bytes": len(fields["file"]), "purpose": "batch", "status": "processed"}
        )

    async def _download(self, request: web.Request) -> web.Response:
        content = self._files.get(request.match_info["id"])
        if content is None:
            return error_response(404, f"no such file: {request.match_info['id']}")
        return web.Response(body=content, content_type="application/octet-stream")

    async def _create(self, request: web.Request) -> web.Response:
        try:
            order = await request.json()
            file_id, endpoint, window = order["input_file_id"], order["endpoint"], order["completion_window"]
            metadata = dict(order.get("metadata") or {})
        except (ValueError, LookupError, TypeError):
            return error_response(400, "a batch needs input_file_id, endpoint and completion_window")
        if file_id not in self._files or endpoint != _ENDPOINT or window != "24h":
            return error_response(400, f"unknown input_file_id, endpoint is not {_ENDPOINT}, or window is not 24h")
        batch = TeacherBatch(f"batch_{len(self._batches) + 1}", file_id, window, metadata)
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._process(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._draws.happens(self._faults.rate_created_500):
            return error_response(500, "the batch was created, but this answer hides it")
        return web.json_response(batch.to_json())

    async def _list(self, request: web.Request) -> web.Response:
        """List the batches, newest first, `limit` per page, starting after the batch `after`."""
        newest = list(reversed(self._batches.values()))
        after = request.query.get("after")
        start = next((place + 1 for place, batch in enumerate(newest) if batch.id == after), 0)
        page = newest[start : start + int(request.query.get("limit", _PAGE))]
        return web.json_response(
            {
                "object": "list",
                "data": [batch.to_json() for batch in page],
                "last_id": page[-1].id if page else None,
                "has_more": start + len(page) < len(newest),
            }
        )

    async def _poll(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            return error_response(404, f"no such batch: {request.match_info['id']}")
        return web.json_response(batch.to_json())

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"])
        if batch is not None and batch.status in ("validating", "in_progress"):
            batch.status = "cancelling"
        return await self._poll(request)

    async def _process(self, batch: TeacherBatch) -> None:
        """Answer the lines slice by slice over batch_delay_s seconds; the batch may be cancelled or expire half-way."""
        lines, problem = _parse_lines(self._files[batch.input_file_id])
        problem = problem or self._check_limit(len(lines))
        if problem:
            batch.status, batch.errors = "failed", {"object": "list", "data": [problem]}
            return
        batch.request_counts["total"] = len(lines)
        await asyncio.sleep(self._faults.batch_delay_s / 2)
        if batch.status == "validating":
            batch.status = "in_progress"
        last = len(lines) // 2 if self._draws.happens(self._faults.rate_batch_expired) else len(lines)
        answers: list[dict[str, Any]] = []
        for place, line in enumerate(lines[:last]):
            if place % max(1, len(lines) // _SLICES) == 0:
                await asyncio.sleep(self._faults.batch_delay_s / 2 / _SLICES)
            if batch.status == "cancelling":
                break
            answers.append(self._answer(batch, line))
        self._close(batch, lines, answers)

    def _check_limit(self, lines: int) -> dict[str, Any] | None:
        """Return the error of a batch that exceeds the limit on lines in flight, else None."""
        in_flight = sum(
            batch.request_counts["total"]
            for batch in self._batches.values()
            if batch.status in ("validating", "in_progress", "cancelling")
        )
        if not self._faults.limit_batch_lines or in_flight + lines <= self._faults.limit_batch_lines:
            return None
        return {"code": "token_limit_exceeded", "message": "the limit of lines in flight is reached"}

    def _answer(self, batch: TeacherBatch, line: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one line, in the format of the output and error files."""
        fault: str | None
        body: dict[str, Any]
        try:
            asked = read_request(line["body"], not self._faults.no_json_schema)
        except BadRequest as error:
            fault, status, body = "400", 400, {"error": {"message": str(error)}}
        else:
            fault = self._gate.draw_fault(asked.messages)
            self._stats.count(asked.key, fault or "reply")
            status, body = 200, WRONG_SCHEMA
            if fault is None:
                body = complete(asked, self._random_seed, self._draws)
            elif fault != "wrong_schema":
                status = int(fault) if fault.isdigit() else 500
                body = {"error": {"message": f"fault {fault} on request"}}
        batch.request_counts["completed" if status == 200 else "failed"] += 1
        return _format_answer(line["custom_id"], {"status_code": status, "body": body})

    def _close(self, batch: TeacherBatch, lines: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
        """Write the files of answers and set the final status."""
        answered = {answer["custom_id"] for answer in answers}
        good = [answer for answer in answers if answer["response"]["status_code"] == 200]
        bad = [answer for answer in answers if answer["response"]["status_code"] != 200]
        if batch.status == "cancelling":
            batch.status = "cancelled"
        else:
            batch.status = "completed" if len(answered) == len(lines) else "expired"
            expired = {"code": "batch_expired", "message": "not executed before the completion window expired"}
            missing = [line["custom_id"] for line in lines if line["custom_id"] not in answered]
            bad += [_format_answer(custom_id, None, expired) for custom_id in missing]
        batch.output_file_id = self._store_lines(batch, good)
        batch.error_file_id = self._store_lines(batch, bad)

    def _store_lines(self, batch: TeacherBatch, answers: list[dict[str, Any]]) -> str | None:
        random.Random(batch.id).shuffle(answers)
        return self._store("".join(json.dumps(answer) + "\n" for answer in answers).encode()) if answers else None

    def _store(self, content: bytes) -> str:
        file_id = f"file-{len(self._files) + 1}"
        self._files[file_id] = content
        return file_id


def _format_answer(
    custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": error}


def _parse_lines(content: bytes) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the requests of an input file, or the error of its first bad line."""
    lines: list[dict[str, Any]] = []
    known: set[str] = set()
    for number, text in enumerate(_split_lines(content), start=1):
        try:
            line = json.loads(text)
            custom_id, well_formed = line["custom_id"], line["method"] == "POST" and line["url"] == _ENDPOINT
            well_formed = well_formed and isinstance(line["body"], dict) and custom_id not in known
        except (ValueError, LookupError, TypeError):
            well_formed = False
        if not well_formed:
            return [], {"code": "invalid_line", "message": "not a request, or its custom_id is taken", "line": number}
        known.add(custom_id)
        lines.append(line)
    return lines, None


def _split_lines(content: bytes) -> Iterable[bytes]:
    return (text for text in content.split(b"\n") if text.strip())
