import asyncio
import logging
import time
from email.utils import formatdate

import pytest
from aiohttp import web
from chat_calls import KEY, MESSAGES, ask, completion, failure_of, serving, settings

from medssr_dist.errors import InputError
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.client.chat_client import ChatClient, build_api_url
from medssr_dist.synthesis.client.chat_reply import NoReply
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT
from medssr_dist.synthesis.prompts import hash_request


@pytest.mark.parametrize("json_schema", [False, True])
async def test_reply_and_what_is_sent(json_schema):
    seen = {}

    async def handler(request):
        seen.update(headers=request.headers, body=await request.json())
        return web.json_response(completion("é"))

    async with serving(handler) as url:
        reply = await ask(url + "/", json_schema=json_schema)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.model) == ("é", 3, 0, "m-2")
    assert reply.endpoint.base_url == url + "/"
    assert seen["headers"]["Authorization"] == f"Bearer {KEY}"
    assert seen["headers"]["Content-Type"] == "application/json"
    form = {"response_format": RESPONSE_FORMAT} if json_schema else {}
    assert seen["body"] == {"model": "m", "messages": MESSAGES, "temperature": 0.3, "max_tokens": 1024} | form


async def test_connections_are_kept_alive():
    ports = set()

    async def handler(request):
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.json_response(completion())

    async with serving(handler) as url:
        synthesis = settings(url)
        async with ChatClient(synthesis.endpoints[0], synthesis) as client:
            for _ in range(5):
                await client.ask(MESSAGES)
    assert len(ports) == 1


async def test_a_failure_is_classified_and_quoted():
    error = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    failure = await failure_of(lambda _: web.json_response(error, status=429))
    assert (failure.scope, failure.reason) == (Scope.CREDIT, "HTTP 429: You exceeded your quota")


async def test_the_servers_words_come_without_the_key(caplog):
    caplog.set_level(logging.DEBUG)

    def echo(request):
        return web.Response(status=400, text="x" * 280 + f" bad thing {request.headers['Authorization']}")

    failure = await failure_of(echo)
    assert failure.reason == "HTTP 400: " + ("x" * 280 + " bad thing Bearer ***")[:300]
    synthesis = settings()
    client = ChatClient(synthesis.endpoints[0], synthesis)
    assert KEY[:6] not in failure.reason + repr(client.endpoint) + caplog.text


async def test_deadlines_of_first_byte_and_whole_reply():
    async def silent(_):
        await asyncio.sleep(5)

    async def trickling(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(50):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    async with serving(silent) as url:
        with pytest.raises(NoReply, match="nothing came for first_byte_s = 0.1") as error:
            await ask(url, {"first_byte_s": 0.1})
        assert error.value.failure.may_be_billed
    async with serving(trickling) as url:
        with pytest.raises(NoReply, match="no whole reply within whole_s = 0.3"):
            await ask(url, {"first_byte_s": 0.2, "whole_s": 0.3})


async def test_a_cut_connection_may_have_been_billed():
    def reset(request):
        request.transport.abort()
        return web.Response()

    failure = await failure_of(reset)
    assert failure.scope is Scope.TRY and failure.may_be_billed


async def test_nothing_was_sent_where_nobody_listens():
    with pytest.raises(NoReply, match="Cannot connect") as error:
        await ask("http://127.0.0.1:1/v1")
    assert error.value.failure.scope is Scope.UNREACHABLE and not error.value.failure.may_be_billed


async def test_waits_that_a_server_asks_for_reach_the_caller():
    dates = {"Retry-After": formatdate(1_000_007, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)}
    for sent, seconds in (({"Retry-After": "2"}, 2.0), (dates, 7.0), ({"retry-after-ms": "1500"}, 1.5), ({}, None)):
        failure = await failure_of(lambda _, sent=sent: web.Response(status=429, headers=sent))
        assert (failure.scope, failure.retry_after) == (Scope.LOAD, seconds)


async def test_a_limit_with_nothing_left_pauses_the_client():
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}
    for headers, seconds in ((used_up, 60.0), (used_up | {"x-ratelimit-remaining-requests": "3"}, 0.0)):

        async def handler(request, headers=headers):
            return web.json_response(completion(), headers=headers)

        async with serving(handler) as url:
            synthesis = settings(url)
            async with ChatClient(synthesis.endpoints[0], synthesis) as client:
                await client.ask(MESSAGES)
                assert client.paused_until - time.monotonic() == pytest.approx(seconds, abs=2) or not seconds


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is not taken by this model; send max_completion_tokens",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Unknown argument: max_tokens",
    ],
)
async def test_the_name_of_the_token_limit_follows_the_server(words):
    bodies = []

    async def handler(request):
        bodies.append(await request.json())
        if "max_tokens" in bodies[-1]:
            return web.json_response({"error": {"message": words}}, status=400)
        return web.json_response(completion())

    async with serving(handler) as url:
        synthesis = settings(url)
        async with ChatClient(synthesis.endpoints[0], synthesis) as client:
            replies = await asyncio.gather(*(client.ask(MESSAGES) for _ in range(3)))
            replies.append(await client.ask(MESSAGES))
    assert [reply.text for reply in replies] == ["ok"] * 4
    assert bodies[-1]["max_completion_tokens"] == 1024 and "max_tokens" not in bodies[-1]
    assert len(bodies) <= 3 + 3 + 1  # the last request was right at once


@pytest.mark.parametrize(
    "words",
    ["max_tokens is too large: 1024. This model supports at most 512 completion tokens", "no model m for you"],
)
async def test_other_refusals_keep_the_name_of_the_limit(words):
    seen = []

    def refuse(request):
        seen.append(request)
        return web.json_response({"error": {"message": words}}, status=400)

    assert (await failure_of(refuse)).scope.is_refusal and len(seen) == 1


async def test_azures_query_path_and_header_are_sent():
    seen = {}

    async def handler(request):
        seen.update(url=request.rel_url, headers=request.headers)
        return web.json_response(completion())

    app = web.Application()
    app.router.add_post("/openai/deployments/{name}/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/openai/deployments/a%20b/?api-version=2024-10-21"
    try:
        assert (await ask(base, api_key_header="api-key")).text == "ok"
    finally:
        await runner.cleanup()
    assert str(seen["url"]) == "/openai/deployments/a%20b/chat/completions?api-version=2024-10-21"
    assert seen["headers"]["api-key"] == KEY and "Authorization" not in seen["headers"]


async def test_a_redirect_is_named_and_not_followed():
    def answers(request):
        return web.Response(status=307, headers={"Location": "http://other.example/v1/chat/completions/"})

    failure = await failure_of(answers)
    assert failure.scope is Scope.ADDRESS
    assert failure.reason == "HTTP 307: it redirects to http://other.example/v1/chat/completions/"


def test_a_base_url_may_name_the_whole_path():
    for base in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert str(build_api_url(base, "/chat/completions")) == "http://h/v1/chat/completions"
    assert str(build_api_url("http://h/v1?a=b", "/files")) == "http://h/v1/files?a=b"


@pytest.mark.parametrize("query", ["key=sk-1", "api-version=1&access_token=sk-1", "sig=sk-1"])
def test_a_key_in_the_query_is_refused_and_not_shown(query):
    with pytest.raises(InputError, match="holds a key in its query") as error:
        build_api_url(f"http://h/v1?{query}", "/chat/completions")
    assert "sk-1" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "https://user:pw@host/v1", "http://[x/v1"])
def test_unusable_base_url(url):
    with pytest.raises(InputError, match="base_url") as error:
        build_api_url(url, "/chat/completions")
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("key", ["", "sk-1\n", "sk 1", "sk-é"])
def test_unusable_key_is_named_but_not_shown(key):
    synthesis = settings(api_key=key)
    with pytest.raises(InputError, match="http://127.0.0.1:1/v1: the api_key is empty, or holds") as error:
        ChatClient(synthesis.endpoints[0], synthesis)
    assert "sk" not in str(error.value)


def test_request_hash_follows_what_the_reply_depends_on():
    first = hash_request(MESSAGES, settings())
    assert first == hash_request(MESSAGES, settings("http://b/v1", api_key=None, concurrency=3))
    for other in ({"model": "n"}, {"json_schema": True}):
        assert first != hash_request(MESSAGES, settings(**other))
    assert first != hash_request(MESSAGES, settings().model_copy(update={"max_tokens": 5}))
    assert first != hash_request(MESSAGES, settings().model_copy(update={"temperature": 0.1}))
    assert first != hash_request([{"role": "user", "content": "x"}], settings())
