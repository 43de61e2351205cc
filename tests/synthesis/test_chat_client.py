import asyncio
import logging
import time
from contextlib import asynccontextmanager
from email.utils import formatdate

import pytest
from aiohttp import web
from config_builder import make_config
from yarl import URL

from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import (
    ChatClient,
    KeyRefused,
    NotAnEndpoint,
    PromptRefused,
    RequestRefused,
    TryFailed,
    Unreachable,
    build_chat_url,
    find_proxy,
    parse_retry_after,
)
from medssr_dist.synthesis.client.request_body import RESPONSE_FORMAT
from medssr_dist.synthesis.prompts import hash_request

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


def completion(text="ok"):
    return {"model": "m-2", "choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 3}}


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


@pytest.mark.parametrize(
    ("status", "kind", "may_be_billed"),
    [
        (429, RequestRefused, False),
        (503, RequestRefused, False),
        (529, RequestRefused, False),
        (500, TryFailed, False),
        (502, TryFailed, False),
        (408, TryFailed, True),
        (504, TryFailed, True),
        (204, TryFailed, True),
        (400, PromptRefused, False),
        (413, PromptRefused, False),
        (422, PromptRefused, False),
        (401, KeyRefused, False),
        (403, KeyRefused, False),
        (402, KeyRefused, False),
        (404, NotAnEndpoint, False),
        (405, NotAnEndpoint, False),
        (302, NotAnEndpoint, False),
    ],
)
async def test_what_each_status_stands_for(status, kind, may_be_billed):
    with pytest.raises(kind, match=f"HTTP {status}") as failure:
        await ask_server_that(lambda _: web.Response(status=status))
    assert failure.value.may_be_billed is may_be_billed


async def test_an_account_without_quota_is_not_asked_again():
    error = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    with pytest.raises(KeyRefused, match="HTTP 429: You exceeded your quota"):
        await ask_server_that(lambda _: web.json_response(error, status=429))


async def test_the_servers_words_come_without_the_key(caplog):
    caplog.set_level(logging.DEBUG)

    def echo(request):
        return web.Response(status=400, text="x" * 280 + f" bad key {request.headers['Authorization']}")

    with pytest.raises(PromptRefused, match=r"x{280} bad key Bearer \*\*\*") as failure:
        await ask_server_that(echo)
    synthesis = settings()
    client = ChatClient(synthesis.endpoints[0], synthesis)
    assert KEY[:6] not in str(failure.value) + repr(client.endpoint) + caplog.text


@pytest.mark.parametrize("body", ["[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', '"x"'])
async def test_json_that_is_no_completion(body):
    with pytest.raises(TryFailed, match="not a chat completion") as failure:
        await ask_server_that(lambda _: web.Response(text=body))
    assert failure.value.may_be_billed


@pytest.mark.parametrize("body", [b"", b"almost {", b'{"choices": [{"mess', b"\xff\xfe", b"[" * 200_000])
async def test_what_is_not_json(body):
    with pytest.raises(TryFailed, match="not JSON"):
        await ask_server_that(lambda _: web.Response(body=body))


async def test_html_is_not_an_endpoint():
    with pytest.raises(NotAnEndpoint, match="answers HTML: <html>Log in"):
        await ask_server_that(lambda _: web.Response(text="\n<html>Log in</html>"))


async def test_half_a_surrogate_pair_is_kept_as_text():
    body = '{"choices": [{"message": {"content": "cut \\ud83d"}}]}'
    assert (await ask_server_that(lambda _: web.Response(text=body))).text == "cut ?"


async def test_null_content_is_a_paid_empty_reply():
    assert (await ask_server_that(lambda _: web.json_response(completion(None)))).text == ""


async def test_why_the_reply_ended_is_read():
    ended = []
    for message, end in (({}, "length"), ({}, None), ({"refusal": "I will not."}, "stop"), ({}, "content_filter")):
        body = {"choices": [{"message": {"content": None} | message, "finish_reason": end}]}
        ended.append((await ask_server_that(lambda _, body=body: web.json_response(body))).finish_reason)
    assert ended == ["length", "", "refusal", "content_filter"]
    assert (await ask_server_that(lambda _: web.json_response(completion()))).finish_reason == ""


@pytest.mark.parametrize("end", ["abort", "error", "insufficient_system_resource"])
async def test_a_reply_that_the_server_broke_off_is_asked_again(end):
    body = {"choices": [{"message": {"content": "Half a"}, "finish_reason": end}]}
    with pytest.raises(TryFailed, match=f"broke the reply off .finish_reason '{end}'") as failure:
        await ask_server_that(lambda _: web.json_response(body))
    assert failure.value.may_be_billed


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
        with pytest.raises(TryFailed, match="nothing came for first_byte_s = 0.1") as failure:
            await ask(url, {"first_byte_s": 0.1})
        assert failure.value.may_be_billed
    async with serving(trickling) as url:
        with pytest.raises(TryFailed, match="no whole reply within whole_s = 0.3"):
            await ask(url, {"first_byte_s": 0.2, "whole_s": 0.3})


async def test_a_cut_connection_may_have_been_billed():
    def reset(request):
        request.transport.abort()
        return web.Response()

    with pytest.raises(TryFailed) as failure:
        await ask_server_that(reset)
    assert failure.value.may_be_billed


async def test_nothing_was_sent_where_nobody_listens():
    with pytest.raises(Unreachable, match="Cannot connect") as failure:
        await ask("http://127.0.0.1:1/v1")
    assert not failure.value.may_be_billed


async def test_retry_after_reaches_the_caller():
    headers = {"Retry-After": formatdate(1_000_007, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)}
    for sent, seconds in (({"Retry-After": "2"}, 2.0), (headers, 7.0), ({}, None)):
        with pytest.raises(RequestRefused) as failure:
            await ask_server_that(lambda _, sent=sent: web.Response(status=429, headers=sent))
        assert failure.value.retry_after == seconds


def test_retry_after_forms(monkeypatch):
    assert parse_retry_after("2.5") == 2.5 and parse_retry_after("-1") == 0
    assert parse_retry_after(None) is None and parse_retry_after("soon") is None and parse_retry_after("nan") is None
    assert parse_retry_after("inf") is None
    assert 9 < parse_retry_after(formatdate(time.time() + 10.9, usegmt=True)) < 11
    assert parse_retry_after(formatdate(time.time() - 100, usegmt=True)) == 0
    server_now = formatdate(1_000_000, usegmt=True)
    monkeypatch.setattr(time, "time", lambda: 5e9)  # a clock that jumped
    assert parse_retry_after(formatdate(1_000_030, usegmt=True), server_now) == 30


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "https://user:pw@host/v1", "http://[x/v1"])
def test_unusable_base_url(url):
    with pytest.raises(InputError, match="base_url") as error:
        build_chat_url(url)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("key", ["", "sk-1\n", "sk 1", "sk-é"])
def test_unusable_key_is_named_but_not_shown(key):
    synthesis = settings(api_key=key)
    with pytest.raises(InputError, match="http://127.0.0.1:1/v1: the api_key is empty, or holds") as error:
        ChatClient(synthesis.endpoints[0], synthesis)
    assert "sk" not in str(error.value)


def test_the_environments_proxy_is_used_but_never_for_loopback(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert find_proxy(URL("http://api.example/v1")) == "http://proxy:3128"
    assert find_proxy(URL("http://inside.example/v1")) is None
    assert find_proxy(URL("http://127.0.0.1:8000/v1")) is None


def test_request_hash_follows_what_the_reply_depends_on():
    first = hash_request(MESSAGES, settings())
    assert first == hash_request(MESSAGES, settings("http://b/v1", api_key=None, concurrency=3))
    for other in ({"model": "n"}, {"json_schema": True}):
        assert first != hash_request(MESSAGES, settings(**other))
    assert first != hash_request(MESSAGES, settings().model_copy(update={"max_tokens": 5}))
    assert first != hash_request(MESSAGES, settings().model_copy(update={"temperature": 0.1}))
    assert first != hash_request([{"role": "user", "content": "x"}], settings())
