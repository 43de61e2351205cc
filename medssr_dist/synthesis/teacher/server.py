"""The HTTP side of the offline teacher: chat completions, models, files and batches, /healthz and /stats."""

from __future__ import annotations

import asyncio

from aiohttp import web

from medssr_dist.synthesis.teacher.batches import Batches
from medssr_dist.synthesis.teacher.faults import FaultDraws, Faults
from medssr_dist.synthesis.teacher.gate import Gate
from medssr_dist.synthesis.teacher.misbehave import error_response, misbehave
from medssr_dist.synthesis.teacher.replies import MODEL, NOTICE, BadRequest, complete, read_request
from medssr_dist.synthesis.teacher.stats import Stats


def make_app(random_seed: int, faults: Faults) -> web.Application:
    """The teacher as an aiohttp application."""
    stats, draws = Stats(), FaultDraws(faults)
    gate = Gate(faults, draws, stats)
    chat = _Chat(random_seed, faults, draws, gate, stats)
    app = web.Application(client_max_size=16 * 2**20)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.complete),
            web.get("/v1/models", _models),
            web.get("/healthz", _health),
            web.get("/stats", chat.tell_stats),
            *Batches(random_seed, faults, draws, gate, stats).routes(),
        ]
    )
    return app


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": NOTICE}]})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "notice": NOTICE})


class _Chat:
    def __init__(self, random_seed: int, faults: Faults, draws: FaultDraws, gate: Gate, stats: Stats):
        self._random_seed = random_seed
        self._faults = faults
        self._draws = draws
        self._gate = gate
        self._stats = stats

    async def tell_stats(self, _: web.Request) -> web.Response:
        return web.json_response(vars(self._stats))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        with self._stats.answering():
            try:
                asked = read_request(await request.json(), not self._faults.no_json_schema)
            except (BadRequest, ValueError) as error:
                return error_response(400, str(error))
            fault = self._gate.refusal()
            if fault is None:
                await asyncio.sleep(self._faults.latency_s)
                fault = self._gate.fault(asked.messages)
            self._stats.count(asked.key, fault or "reply")
            if fault:
                return await misbehave(fault, request, self._faults)
            return web.json_response(complete(asked, self._random_seed, self._draws))
