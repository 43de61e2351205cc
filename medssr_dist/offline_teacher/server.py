"""The HTTP server of the offline teacher: chat completions, models, files and batches, /healthz and /stats."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from medssr_dist.config.synthesis import Endpoint
from medssr_dist.data.private_files import open_private
from medssr_dist.offline_teacher.batches import Batches
from medssr_dist.offline_teacher.faults import FaultDraws, Faults, Gate, Stats, error_response, misbehave
from medssr_dist.offline_teacher.replies import MODEL, NOTICE, BadRequest, complete, read_request


def make_app(random_seed: int, faults: Faults) -> web.Application:
    """Return the teacher as an aiohttp application."""
    stats, draws = Stats(), FaultDraws(faults)
    gate = Gate(faults, draws, stats)
    chat = _Chat(random_seed, faults, draws, gate, stats)
    app = web.Application(client_max_size=16 * 2**20)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat.complete),
            web.get("/v1/models", _models),
            web.get("/healthz", _health),
            web.get("/stats", chat.report_stats),
            *Batches(random_seed, faults, draws, gate, stats).list_routes(),
        ]
    )
    return app


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": NOTICE}]})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "notice": NOTICE})


class _Chat:
    """Answers chat requests and reports the counts."""

    def __init__(self, random_seed: int, faults: Faults, draws: FaultDraws, gate: Gate, stats: Stats):
        self._random_seed = random_seed
        self._faults = faults
        self._draws = draws
        self._gate = gate
        self._stats = stats

    async def report_stats(self, _: web.Request) -> web.Response:
        return web.json_response(vars(self._stats))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        with self._stats.count_in_flight():
            try:
                asked = read_request(await request.json(), not self._faults.no_json_schema)
            except (BadRequest, ValueError) as error:
                return error_response(400, str(error))
            fault = self._gate.draw_refusal()
            if fault is None:
                await asyncio.sleep(self._faults.latency_s)
                fault = self._gate.draw_fault(asked.messages)
            self._stats.count(asked.key, fault or "reply")
            if fault:
                return await misbehave(fault, request, self._faults)
            return web.json_response(complete(asked, self._random_seed, self._draws))


OFFLINE_TEACHER = "offline-teacher"  # the base_url that stands for this server
_END_S = 5


@contextmanager
def start_teacher(log_path: Path, random_seed: int = 42, options: Sequence[str] = ()) -> Iterator[str]:
    """Run the teacher on a free loopback port during the block; yield its base URL.

    The process ends with the block, and also when this process ends, even by SIGKILL.

    Args:
        log_path: file for its stderr.
        options: further command-line options, such as ("--rate-429", "0.3").

    Raises:
        RuntimeError: it ended before it was ready; the message contains the end of its log.
    """
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "medssr_dist.offline_teacher.serve", "--port", "0"]
    command += ["--random-seed", str(random_seed)]
    command += ["--exit-with-parent", str(os.getpid()), *options]
    handle = open_private(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open(handle, "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        base_url = process.stdout.readline().strip()  # printed when it is ready; '' if it has ended
        if not base_url:
            raise RuntimeError(f"the offline teacher did not start: {log_path.read_text(encoding='utf-8')[-500:]}")
        yield base_url
    finally:
        _end(process)


@contextmanager
def open_endpoints(endpoints: list[Endpoint], *, log_path: Path, random_seed: int) -> Iterator[list[Endpoint]]:
    """Yield `endpoints`; an endpoint 'offline-teacher' is replaced by a server that runs during the block."""
    if all(endpoint.base_url != OFFLINE_TEACHER for endpoint in endpoints):
        yield endpoints
        return
    with start_teacher(log_path, random_seed) as url:
        yield [
            endpoint.model_copy(update={"base_url": url}) if endpoint.base_url == OFFLINE_TEACHER else endpoint
            for endpoint in endpoints
        ]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
