"""A completions server that misbehaves on demand, and the requests that tests send to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from medssr_dist.config.schema import Policy
from medssr_dist.inference.engine_protocol import EngineOutput
from medssr_dist.inference.requests import SampleRequest
from medssr_dist.inference.vllm_server import ServerEngine

OPTIONS = {"A": "scurvy", "B": "rickets", "C": "gout", "D": "pellagra"}
POLICY = Policy(model="models/policy", max_model_len=64)
CARD = {"id": "policy", "object": "model", "owned_by": "vllm", "root": "models/policy", "max_model_len": 64}
KEY = "sk-very-secret-42"


def ask(n: int = 1, seed: int = 0, prompt: Sequence[int] = (5, 7), **fields) -> SampleRequest:
    return SampleRequest(key="q", prompt=prompt, options=OPTIONS, n=n, seed=seed, max_tokens=8, **fields)


def event(index: int, text: str, tokens: int, end: str | None = None, **fields) -> bytes:
    chunk = {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": end}]}
    chunk |= {"usage": {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens}} | fields
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def stated(seed: int) -> str:
    return f"The answer is ({'ABCD'[seed % 4]})."


class FarEnd:
    """A completions server. `script(body, say)` answers each request after the trial request of `start`."""

    def __init__(self):
        self.cards, self.key, self.bodies, self.open = [CARD], None, [], 0
        self.script = self.answer

    async def answer(self, body, say):
        for index in range(body["n"]):
            await say(event(index, stated(body["seed"] + index)[:-5], 3))
        for index in range(body["n"]):
            await say(event(index, stated(body["seed"] + index)[-5:], 5, "stop"))
        await say(b'data: {"choices": [], "usage": {"completion_tokens": 99}}\n\ndata: [DONE]\n\n')

    async def models(self, request):
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": self.cards})

    async def completions(self, request):
        body = await request.json()
        trial = body["max_tokens"] == 1 and "allowed_token_ids" not in body
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

        async def say(data: bytes):
            if not response.prepared:
                await response.prepare(request)
            await response.write(data)

        self.open += 1
        try:
            if trial:
                await self.answer(body, say)
                return response
            self.bodies.append(body)
            other = await self.script(body, say)
            if other == "cut":
                request.transport.abort()
            return other if isinstance(other, web.Response) else response
        finally:
            self.open -= 1

    @asynccontextmanager
    async def serve(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        async with TestServer(app, handler_cancellation=True) as server:
            yield str(server.make_url("/v1"))


async def take_all(engine: ServerEngine, samples: int) -> EngineOutput:
    total = EngineOutput()
    while len(total.samples) < samples:
        output = await engine.collect()
        assert not output.failed
        total.samples += output.samples
        total.tokens += output.tokens
    return total
