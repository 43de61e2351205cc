"""What a fault looks like on the wire."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate

from aiohttp import web

from medssr_dist.synthesis.teacher.faults import Faults
from medssr_dist.synthesis.teacher.replies import WRONG_SCHEMA

_HANG_S = 3600
_HTML = "<html><body>Bad gateway, try later</body></html>"


async def misbehave(fault: str, request: web.Request, faults: Faults) -> web.StreamResponse:
    """The answer that `fault` stands for: a status, or one of faults.KINDS."""
    if fault == "hang":
        await asyncio.sleep(_HANG_S)
    if fault == "reset":
        request.transport.abort()
    if fault == "truncated":
        return await _cut_short(request)
    if fault == "nonjson":
        return web.Response(text=_HTML, content_type="text/html")
    if fault == "wrong_schema":
        return web.json_response(WRONG_SCHEMA)
    status = int(fault) if fault.isdigit() else 500
    return error_response(status, f"fault {fault} on request", _retry_after(faults) if status == 429 else None)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in OpenAI's form."""
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def _retry_after(faults: Faults) -> dict[str, str]:
    seconds = faults.retry_after
    if seconds is None:
        return {}
    if faults.retry_after_date:
        return {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}
    return {"Retry-After": f"{seconds:g}"}


async def _cut_short(request: web.Request) -> web.StreamResponse:
    """Announce a longer body than is sent, then close the connection."""
    response = web.StreamResponse(headers={"Content-Length": "4096", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps({"id": "x"})[:-1].encode())
    request.transport.close()
    return response
