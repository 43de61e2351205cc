"""One chat request to a server whose answer a test defines."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from config_builder import make_config

from medssr_dist.synthesis.client.chat_client import ChatClient
from medssr_dist.synthesis.client.chat_reply import NoReply

KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "user", "content": "Write a question about gout – now."}]


@asynccontextmanager
async def serving(handler):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def settings(base_url="http://127.0.0.1:1/v1", retry=None, **fields):
    endpoint = {"base_url": base_url, "model": "m", "api_key": KEY, **fields}
    return make_config(synthesis={"endpoints": [endpoint], "temperature": 0.3, "retry": retry or {}}).synthesis


async def ask(base_url, retry=None, **fields):
    synthesis = settings(base_url, retry, **fields)
    async with ChatClient(synthesis.endpoints[0], synthesis) as client:
        return await client.ask(MESSAGES)


async def ask_server_that(answers, **fields):
    """Ask a server that answers with `answers(request)`."""

    async def handler(request):
        return answers(request)

    async with serving(handler) as url:
        return await ask(url, **fields)


async def failure_of(answers, **fields):
    """Return the failure with which a server's answer ends a try."""
    with pytest.raises(NoReply) as error:
        await ask_server_that(answers, **fields)
    return error.value.failure


def completion(text="ok"):
    return {"model": "m-2", "choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 3}}
