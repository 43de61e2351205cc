import asyncio
import json
import logging
import socket
import time
from contextlib import asynccontextmanager
from email.utils import formatdate

import pytest
from aiohttp import web

from medssr_dist.config import Endpoint
from medssr_dist.errors import InputError
from medssr_dist.records import Question
from medssr_dist.synthesis import client as client_module
from medssr_dist.synthesis.client import ChatClient, RequestFailed, retry_after
from medssr_dist.synthesis.prompts import build_messages
from medssr_dist.synthesis.teacher.faults import Faults
from medssr_dist.synthesis.teacher.server import make_app

KEY = "sk-very-secret-0123456789"
SEEDS = [Question.make(f"A {n}-year-old has gout. Which drug?", ["x", "y", f"z{n}"], source="t") for n in range(20, 60)]
MESSAGES = build_messages((SEEDS[0], SEEDS[1]), None, [])


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.02)


@asynccontextmanager
async def serving(app):
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def endpoint(base_url, **fields):
    return Endpoint(**{"base_url": base_url, "model": "m", "api_key": KEY, "timeout_s": 5, **fields})


def answering(handler):
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", handler)])
    return app


def completion(text="ok"):
    return {"model": "m-2", "choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 3}}


async def ask(base_url, **fields):
    async with ChatClient(endpoint(base_url, **fields)) as client:
        return await client.complete(MESSAGES)


async def test_reply_and_what_is_sent():
    seen = {}

    async def handler(request):
        seen.update(headers=request.headers, body=await request.json())
        return web.json_response(completion())

    async with serving(answering(handler)) as url:
        reply = await ask(url + "/", temperature=0.3)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.model) == ("ok", 3, 0, "m-2")
    assert seen["headers"]["Authorization"] == f"Bearer {KEY}"
    assert seen["body"] == {"model": "m", "messages": MESSAGES, "temperature": 0.3, "max_tokens": 1024}


@pytest.mark.parametrize("kind", ["429", "500", "hang", "reset", "truncated", "nonjson"])
async def test_each_fault_is_survived(kind):
    app = make_app(1, Faults(**{f"rate_{kind}": 0.4}, seed=3))
    async with serving(app) as url, ChatClient(endpoint(url, timeout_s=0.3, retries=12, concurrency=8)) as client:
        prompts = [build_messages((SEEDS[n], SEEDS[n + 1]), None, []) for n in range(24)]
        replies = await asyncio.gather(*map(client.complete, prompts))
        assert all(json.loads(reply.text)["question"] for reply in replies)
        assert client.attempts > 24


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_honoured(as_date):
    times = []

    async def handler(_):
        times.append(time.time())
        if len(times) > 1:
            return web.json_response(completion())
        value = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return web.Response(status=429, headers={"Retry-After": value})

    async with serving(answering(handler)) as url:
        assert (await ask(url)).text == "ok"
    assert 0.9 < times[1] - times[0] < 2.5


async def test_absurd_retry_after_gives_up_instead_of_sleeping():
    app = make_app(1, Faults(rate_429=1, retry_after=86400))
    async with serving(app) as url:
        with pytest.raises(RequestFailed, match="asks to wait 86400 s"):
            await ask(url)


def test_retry_after_forms():
    assert retry_after("2.5") == 2.5 and retry_after("-1") == 0
    assert retry_after(None) is None and retry_after("soon") is None
    assert 9 < retry_after(formatdate(time.time() + 10.9, usegmt=True)) < 11
    assert retry_after(formatdate(time.time() - 100, usegmt=True)) == 0


async def test_refused_key_stops_at_once_and_is_not_shown(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving(make_app(1, Faults(rate_401=1))) as url, ChatClient(endpoint(url)) as client:
        with pytest.raises(InputError, match="refuses the key") as error:
            await client.complete(MESSAGES)
        assert client.attempts == 1
    assert url in str(error.value)
    assert KEY not in str(error.value) + repr(client.endpoint) + caplog.text


async def test_other_refusals_carry_the_servers_words_without_the_key():
    async def handler(request):
        return web.Response(status=404, text=f"no model m for {request.headers['Authorization']}")

    async with serving(answering(handler)) as url:
        with pytest.raises(InputError, match=r"HTTP 404: no model m for Bearer \*\*\*") as error:
            await ask(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("body", ["[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', '"x"'])
async def test_json_that_is_no_completion_is_tried_again_then_given_up(body):
    async def handler(_):
        return web.Response(text=body)

    async with serving(answering(handler)) as url:
        with pytest.raises(RequestFailed, match="not a chat completion"):
            await ask(url, retries=2)


async def test_endpoint_down_is_named_after_the_tries():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        async with ChatClient(endpoint(url, retries=2)) as client:
            with pytest.raises(InputError, match=f"endpoint {url} is down"):
                await client.complete(MESSAGES)
            assert client.attempts == 3


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "https://user:pw@host/v1"])
async def test_unusable_base_url(url):
    with pytest.raises(InputError, match="base_url") as error:
        ChatClient(endpoint(url))
    assert "pw" not in str(error.value)


async def test_concurrency_is_bounded():
    inside, most = 0, 0

    async def handler(_):
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        await asyncio.sleep(0.02)
        inside -= 1
        return web.json_response(completion())

    async with serving(answering(handler)) as url, ChatClient(endpoint(url, concurrency=4)) as client:
        await asyncio.gather(*(client.complete(MESSAGES) for _ in range(20)))
    assert most == 4


async def test_stop_ends_the_waiting():
    async with serving(make_app(1, Faults(rate_429=1, retry_after=60))) as url, ChatClient(endpoint(url)) as client:
        asking = asyncio.create_task(client.complete(MESSAGES))
        await asyncio.sleep(0.2)
        client.stop()
        with pytest.raises(RequestFailed):
            await asyncio.wait_for(asking, 1)


async def test_null_content_is_a_paid_empty_reply():
    async def handler(_):
        return web.json_response(completion(None))

    async with serving(answering(handler)) as url:
        assert (await ask(url)).text == ""
