"""A key in every place of a server's answers, in a copy of its variable and in what a worker prints: a run shows none.

Looked at are all files of the run (logs, TensorBoard, checkpoints), both output streams, the command lines of all
processes, and the environments of those that the run has started.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web
from process_list import command_lines

from medssr_dist.offline_teacher.faults import Faults
from medssr_dist.offline_teacher.server import make_app

pytestmark = pytest.mark.slow
KEY = 'planted/+Se"cr<et&9~A0123456'
FORMS = {
    "plain": KEY,
    "JSON": json.dumps(KEY)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(KEY)[1:-1])[1:-1],
    "HTML": html.escape(KEY),
    "URL": quote(KEY, safe=""),
    "URL with slashes": quote(KEY),
    "base64": base64.b64encode(KEY.encode()).decode().rstrip("="),
    "basic": base64.b64encode(f"user:{KEY}".encode()).decode(),
}
SOUGHT = FORMS | {"basic": FORMS["basic"][8:-4]}  # the part that stands for the key alone
REWARD = """
import os, sys
from pathlib import Path

def reward(sample):
    key = Path(os.environ["PLANTED_FILE"]).read_text()
    held = sorted(name for name, value in os.environ.items() if key in value)
    print(f"a reward function prints {key}; it is in {held}", file=sys.stderr, flush=True)
    if held:
        raise ValueError(f"{key} is in {held}")
    return float(sample.letter == sample.answer)
"""


@contextmanager
def start_echo() -> Iterator[str]:
    """Serve the offline teacher, with the key that it was sent in every place of its answers; yield its base URL."""
    number = count()

    @web.middleware
    async def echo(request: web.Request, handler) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        response = await handler(request)
        if next(number) % 3 == 2:
            return web.Response(status=503, text=json.dumps(FORMS), headers={"X-Key": KEY, "Retry-After": "0"})
        body = json.loads(response.body)
        for choice in body["choices"]:
            choice["finish_reason"] = "stop"
            choice["message"] |= {"refusal": None, "note": FORMS}
            with suppress(ValueError):
                choice["message"]["content"] = json.dumps(json.loads(choice["message"]["content"]) | {"note": FORMS})
        body |= {"id": KEY, "model": f"m {KEY}", "system_fingerprint": KEY, KEY: FORMS}
        return web.json_response(body, headers={"X-Key": KEY, "X-Request-Id": KEY})

    async def serve() -> None:
        app = make_app(42, Faults())
        app.middlewares.append(echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        addresses.append(runner.addresses[0])
        ready.set()
        await asyncio.to_thread(ended.wait)
        await runner.cleanup()

    addresses: list[tuple[str, int]] = []
    ready, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        yield f"http://127.0.0.1:{addresses[0][1]}/v1"
    finally:
        ended.set()
        thread.join()


def list_environments(driver: int) -> Iterator[str]:
    """Yield the environment of every process but the driver, whose first one nobody can change."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        if file.parent.name != str(driver):
            with suppress(OSError):
                yield file.read_bytes().decode("utf-8", "replace")


def find_forms(data: bytes) -> list[str]:
    return [name for name, form in SOUGHT.items() if form.encode() in data]


def test_a_whole_run_shows_no_key(tiny_config, tmp_path):
    (tmp_path / "key").mkdir()
    (key_file := tmp_path / "key" / "file").write_text(KEY)
    (tmp_path / "key" / "planted_reward.py").write_text(REWARD)
    run, out = tmp_path / "run", tmp_path / "out"
    environment = os.environ | {"PLANTED_KEY": KEY, "ANOTHER_NAME": KEY, "PLANTED_FILE": str(key_file)}
    environment["PYTHONPATH"] = str(key_file.parent)
    with start_echo() as url, open(out, "wb") as output:
        command = [sys.executable, "-m", "medssr_dist.cli", "run", "--config", str(tiny_config), "--run-dir", str(run)]
        command += [
            f"synthesis.endpoints=[{{base_url: '{url}', model: m, api_key: '${{PLANTED_KEY}}'}}]",
            "training.reward=planted_reward:reward",
            "training.stage2.enabled=false",
            "evaluation.policies=[stage1]",
            "runtime.mode=sequential",
        ]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                assert KEY not in command_lines()
                assert not any(KEY in each for each in list_environments(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        finally:
            process.kill()
    text = out.read_text()
    assert process.returncode == 0, text[-3000:]
    tools = [
        subprocess.run([sys.executable, "-m", "medssr_dist.cli", tool, str(run)], capture_output=True, check=True)
        for tool in ("status", "report")
    ]
    assert find_forms(b"".join([text.encode(), *(done.stdout + done.stderr for done in tools)])) == []
    files = [file for file in run.rglob("*") if file.is_file()]
    found = {str(file.relative_to(run)): find_forms(file.read_bytes()) for file in files}
    found |= {f"{file} unpacked": find_forms(gzip.decompress(file.read_bytes())) for file in run.rglob("*.gz")}
    assert {file: forms for file, forms in found.items() if forms} == {}
    printed = [file for file in (run / "logs").iterdir() if b"a reward function prints ***" in file.read_bytes()]
    assert printed and any(file.name.startswith("events.") for file in files)
    assert any(file.suffix == ".safetensors" for file in files)
