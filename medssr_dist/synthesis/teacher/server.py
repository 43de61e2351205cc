"""The HTTP side of the offline teacher: POST /v1/chat/completions, GET /v1/models, /healthz and /stats."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from email.utils import formatdate

from aiohttp import web

from medssr_dist.records import content_hash
from medssr_dist.synthesis.teacher.composer import compose_reply
from medssr_dist.synthesis.teacher.faults import FaultDraws, Faults, spoil
from medssr_dist.synthesis.teacher.reading import read_prompt

MODEL = "offline-teacher"
NOTICE = "offline rule-based stand-in for a synthesis API; not a language model"
_HANG_S = 3600


def make_app(random_seed: int, faults: Faults) -> web.Application:
    """The teacher as an aiohttp application. Usage is counted at four characters a token."""
    teacher = _Teacher(random_seed, faults)
    app = web.Application(client_max_size=16 * 2**20)
    app.add_routes(
        [
            web.post("/v1/chat/completions", teacher.chat),
            web.get("/v1/models", teacher.models),
            web.get("/healthz", teacher.health),
            web.get("/stats", teacher.stats),
        ]
    )
    return app


class _Teacher:
    def __init__(self, random_seed: int, faults: Faults):
        self._random_seed = random_seed
        self._faults = faults
        self._draws = FaultDraws(faults)
        self._outcomes: Counter[str] = Counter()
        self._replies: Counter[str] = Counter()

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": NOTICE}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "notice": NOTICE})

    async def stats(self, _: web.Request) -> web.Response:
        """Tries by outcome, and whole replies by hash of their messages."""
        return web.json_response({"outcomes": self._outcomes, "replies": self._replies})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            messages, model = body["messages"], str(body.get("model") or MODEL)
            prompt = read_prompt(messages)
        except (ValueError, LookupError, TypeError, AttributeError):
            return _error(400, "the body is not a chat completion request")
        if prompt is None:
            return _error(400, f"{NOTICE}: it answers the prompts of `medssr synthesize` only")
        await asyncio.sleep(self._faults.latency_s)
        fault = self._draws.draw()
        self._outcomes[fault or "reply"] += 1
        if fault:
            return await self._misbehave(fault, request)
        self._replies[content_hash(messages)] += 1
        reply = compose_reply(prompt, f"{self._random_seed} {content_hash(messages)}")
        flaw = self._draws.flaw(messages)
        return web.json_response(_completion(messages, spoil(reply, flaw) if flaw else reply, model))

    async def _misbehave(self, fault: str, request: web.Request) -> web.StreamResponse:
        if fault == "hang":
            await asyncio.sleep(_HANG_S)
        if fault == "reset":
            request.transport.abort()
        if fault == "truncated":
            return await _cut_short(request)
        if fault == "nonjson":
            return web.Response(text="<html><body>Bad gateway, try later</body></html>", content_type="text/html")
        status = int(fault) if fault.isdigit() else 500
        return _error(status, f"fault {fault} on request", self._retry_after() if status == 429 else {})

    def _retry_after(self) -> dict[str, str]:
        seconds = self._faults.retry_after
        if seconds is None:
            return {}
        if self._faults.retry_after_date:
            return {"Retry-After": formatdate(time.time() + seconds, usegmt=True)}
        return {"Retry-After": f"{seconds:g}"}


def _completion(messages: list[dict], text: str, model: str) -> dict:
    asked = sum(len(str(message.get("content", ""))) for message in messages) // 4
    answered = len(text) // 4
    return {
        "id": f"chatcmpl-{content_hash(messages)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
    }


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


async def _cut_short(request: web.Request) -> web.StreamResponse:
    """Announce a longer body than is sent, then close the connection."""
    response = web.StreamResponse(headers={"Content-Length": "4096", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps({"id": "x"})[:-1].encode())
    request.transport.close()
    return response
