"""A vLLM server as an engine, against a server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from far_server import KEY, POLICY, FarEnd, ask, event, stated, take_all

from medssr_dist.config.voting import Server
from medssr_dist.errors import InputError
from medssr_dist.inference import vllm_server
from medssr_dist.inference.engine_protocol import EngineOutput
from medssr_dist.inference.requests import Completion
from medssr_dist.inference.server_stream import ServerLost
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.runtime.http import event_stream


@pytest.fixture
async def far_end():
    return FarEnd()


def make_engine(url: str, **server) -> ServerEngine:
    config = Server(base_url=url, **server)
    return ServerEngine(
        config, POLICY, Path("/models/policy"), "f00d", lambda text: [len(word) for word in text.split()]
    )


@asynccontextmanager
async def running(far_end: FarEnd, **server):
    async with far_end.serve() as url:
        engine = make_engine(url, **server)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# --- samples -------------------------------------------------------------------------------------------


async def test_each_seed_gives_one_sample(far_end):
    async with running(far_end) as engine:
        engine.submit([(7, ask(n=3, seed=5)), (8, ask(n=1, seed=2))], [])
        output = await take_all(engine, 4)
    by_seed = sorted(output.samples, key=lambda pair: (pair[0], pair[1].seed))
    letters = {2: "C", 5: "B", 6: "C", 7: "D"}
    assert [(lease, sample.seed) for lease, sample in by_seed] == [(7, 5), (7, 6), (7, 7), (8, 2)]
    for _, sample in by_seed:
        assert sample == Completion(sample.seed, stated(sample.seed), 5, False, letters[sample.seed], "statement")
    assert output.tokens == 4 * 5


async def test_every_sampling_parameter_is_sent(far_end):
    async with running(far_end) as engine:
        engine.submit([(1, ask(n=2, seed=9, temperature=0.6, top_p=0.95, top_k=20, stop=("\nQuestion:",)))], [])
        await take_all(engine, 2)
    asked = {"model": "policy", "prompt": [5, 7], "n": 2, "seed": 9, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    neutral = {"max_tokens": 8, "min_p": 0.0, "repetition_penalty": 1.0, "stream": True}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": ["\nQuestion:"]}
    streamed = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream_interval": 16}
    assert far_end.bodies == [asked | neutral | streamed]


async def test_samples_are_returned_as_they_finish(far_end):
    resume = asyncio.Event()

    async def script(body, say):
        await say(event(1, "(B)", 2, "stop") + event(0, "(", 1))
        await resume.wait()
        await say(event(0, "A)", 3, "length", usage={"completion_tokens": 8}))

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(1, ask(n=2))], [])
        first = await engine.collect()
        assert [(sample.seed, sample.answer) for _, sample in first.samples] == [(1, "B")]
        resume.set()
        second = await take_all(engine, 1)
    assert second.samples == [(1, Completion(0, "(A)", 8, True, "A", "bracketed"))]
    assert first.tokens + second.tokens == 2 + 8


async def test_tokens_are_reported_while_no_sample_ends(far_end, monkeypatch):
    monkeypatch.setattr(vllm_server, "_REPORT_S", 0.01)

    async def script(body, say):
        await say(event(0, "thinking", 4) + b": keep-alive\n\n")
        await asyncio.Event().wait()

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(1, ask())], [])
        assert await engine.collect() == EngineOutput(tokens=4)
        with pytest.raises(asyncio.TimeoutError):  # comments are not tokens: a hanging server sends no more
            await asyncio.wait_for(engine.collect(), 0.1)


async def test_max_tokens_fits_the_context(far_end):
    async with running(far_end) as engine:
        engine.submit([(1, ask(prompt=range(60))), (2, ask(n=2, seed=3, prompt=range(64)))], [])
        output = await take_all(engine, 3)
    assert [body["max_tokens"] for body in far_end.bodies] == [4]
    full = [sample for lease, sample in output.samples if lease == 2]
    assert full == [Completion(3, "", 0, True), Completion(4, "", 0, True)]


async def test_choices_are_sent_as_token_ids(far_end):
    async with running(far_end) as engine:
        engine.submit([(1, ask(choices=("A", "Bb"), temperature=0.6, top_p=0.9, top_k=3))], [])
        await take_all(engine, 1)
        engine.submit([(2, ask(choices=("A", "two words")))], [])
        [(lease, reason)] = (await engine.collect()).failed
    body = far_end.bodies[0]
    assert body["allowed_token_ids"] == [1, 2]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.0, 1.0, 0, 1)
    assert (lease, len(far_end.bodies)) == (2, 1)
    assert "single tokens" in reason


# --- aborting ------------------------------------------------------------------------------------------


async def test_an_abort_closes_the_connection_of_that_lease_only(far_end):
    resume = asyncio.Event()

    async def script(body, say):
        await say(event(0, "(A)", 1, "stop"))
        await resume.wait()
        await say(event(1, "(B)", 1, "stop"))

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(1, ask(n=2)), (2, ask(n=2))], [])
        await until(lambda: len(engine._output.samples) == 2)
        engine.submit([], [1, 77])  # 77 ended long ago
        await until(lambda: far_end.open == 1)
        resume.set()
        output = await take_all(engine, 3)
    assert sorted((lease, sample.seed) for lease, sample in output.samples) == [(1, 0), (2, 0), (2, 1)]


async def test_stop_closes_connections_to_a_hanging_server(far_end):
    async def script(body, say):
        await asyncio.Event().wait()

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(lease, ask()) for lease in range(5)], [])
        await until(lambda: far_end.open == 5)
        await engine.stop()
        await until(lambda: far_end.open == 0)


# --- refusals and losses -------------------------------------------------------------------------------


async def test_a_refusal_has_the_message_of_the_server(far_end):
    async def script(body, say):
        if body["seed"] == 0:
            return web.json_response({"error": {"message": "prompt is\ncursed", "code": 400}}, status=400)
        if body["seed"] == 1:
            await say(b'data: {"error": {"message": "out of vocabulary", "code": 400}}\n\ndata: [DONE]\n\n')
            return None
        return await far_end.answer(body, say)

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(lease, ask(seed=lease)) for lease in range(3)], [])
        total = EngineOutput()
        while len(total.samples) + len(total.failed) < 3:
            output = await engine.collect()
            total.samples += output.samples
            total.failed += output.failed
    assert sorted(total.failed) == [(0, "HTTP 400: prompt is cursed"), (1, "HTTP 400: out of vocabulary")]
    assert [lease for lease, _ in total.samples] == [2]


def status(code: int, body: bytes = b"{}"):
    async def script(request, say):
        return web.Response(status=code, body=body)

    return script


def send(*events: bytes, then: str | None = None):
    async def script(request, say):
        for each in events:
            await say(each)
        return then

    return script


def packed(encoding: str, body: bytes):
    async def script(request, say):
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    return script


LOSSES = {
    "overload": (status(429, b'{"error": "slow down"}'), "HTTP 429: slow down"),
    "engine dead": (status(500, b"EngineCore is dead"), "HTTP 500: EngineCore is dead"),
    "starting again": (status(503), "HTTP 503"),
    "key withdrawn": (status(401), "HTTP 401"),
    "model gone": (status(404), "HTTP 404"),
    "moved": (status(307), "HTTP 307"),
    "dies in the stream": (send(b'data: {"error": {"message": "gone", "code": 500}}\n\n'), "HTTP 500: gone"),
    "error of another form": (send(b'data: {"error": "gone"}\n\n'), "HTTP 500: gone"),
    "connection lost": (send(event(0, "(", 1), then="cut"), "Client"),
    "ends too early": (send(event(0, "(", 1), b"data: [DONE]\n\n"), "1 of 1 samples missing"),
    "aborted at the server": (send(event(0, "(", 1, "abort")), "finish_reason 'abort'"),
    "an unknown sample": (send(event(1, "(", 1)), "sample 1 of 1"),
    "no JSON": (send(b"data: <html>\n\n"), "no completion: <html>"),
    "key expired, 400": (status(400, b'{"error": {"message": "API key expired"}}'), "HTTP 400: API key expired"),
    "no credit, 400": (status(400, b'{"error": "credit balance is too low"}'), "HTTP 400: credit balance"),
    "load, 413": (status(413, b'{"error": {"code": "rate_limit_exceeded"}}'), "HTTP 413"),
    "load, 498": (status(498), "HTTP 498"),
    "error in a list": (send(b'data: {"error": [{"message": "gone"}]}\n\n'), "HTTP 500: gone"),
    "GBK": (status(502, "网关".encode("gbk")), "HTTP 502"),
    "escapes": (status(500, b"\x1b[31mred\x07"), r"HTTP 500: .x1b\[31mred.x07$"),
    "counts that fall": (send(event(0, "(", 5), event(0, "A", 3)), "counts 3 tokens in a sample that had 5"),
    "negative counts": (send(event(0, "(", -5)), "counts -5 tokens"),
    "absurd counts": (send(event(0, "(", 10**15)), "counts 1000000000000000 tokens"),
    "infinite counts": (
        send(event(0, "(", 1).replace(b'"completion_tokens": 1', b'"completion_tokens": 1e999')),
        "no compl",
    ),
    "brotli": (packed("br", b"x"), "Content-Encoding: br"),
    "broken gzip": (packed("gzip", b"\x1f\x8b" + b"x" * 50), "is not gzip"),
}


@pytest.mark.parametrize(("script", "message"), LOSSES.values(), ids=LOSSES)
async def test_a_lost_server_is_reported_after_finished_samples(far_end, script, message):
    finished = asyncio.Event()

    async def one_sample_then_loss(body, say):
        if body["seed"] == 0:
            await say(event(0, "(A)", 1, "stop"))
            finished.set()
            return await asyncio.Event().wait()
        await finished.wait()
        return await script(body, say)

    far_end.script = one_sample_then_loss
    async with running(far_end) as engine:
        engine.submit([(1, ask(n=2)), (2, ask(seed=9))], [])
        await until(lambda: engine._error)
        assert [lease for lease, _ in (await engine.collect()).samples] == [1]
        with pytest.raises(ServerLost, match="(?s)" + message.replace("(", r"\(")):
            await engine.collect()
        await until(lambda: far_end.open == 0)  # the other connections are closed

        far_end.script = far_end.answer
        await engine.start()
        engine.submit([(3, ask(n=2))], [])
        assert {lease for lease, _ in (await take_all(engine, 2)).samples} == {3}


async def test_refusing_everything_loses_the_server_and_no_request(far_end):
    asked = []

    async def script(body, say):
        asked.append(body["seed"])
        if body["seed"] == 0:
            return await far_end.answer(body, say)
        return web.json_response({"error": {"message": "nope"}}, status=400)

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(0, ask())], [])
        await take_all(engine, 1)
        engine.submit([(lease, ask(seed=lease)) for lease in range(1, 8)], [])
        with pytest.raises(ServerLost, match="refuses every request now .HTTP 400: nope"):
            assert not (await engine.collect()).failed
            await engine.collect()
        await engine.start()
        engine.submit([(9, ask(seed=9)), (10, ask(seed=10))], [])  # too few to say: reported at the end
        assert sorted(lease for lease, _ in (await engine.collect()).failed) == [9, 10]


async def test_texts_and_bodies_of_any_form_are_read(far_end):
    async def script(body, say):
        await say(b"\r\n: hello\r\nevent: x\r\n" + event(0, "cut \ud83d", 1, "stop").replace(b"\n", b"\r\n"))

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(1, ask())], [])
        [(_, sample)] = (await take_all(engine, 1)).samples
        assert sample.text == "cut \ufffd"


async def test_an_endless_event_loses_the_server(far_end, monkeypatch):
    monkeypatch.setattr(event_stream.read_lines, "__defaults__", (2**16,))

    async def script(body, say):
        await say(b"data: ")
        for _ in range(100):
            await say(b"x" * 2**16)

    far_end.script = script
    async with running(far_end) as engine:
        engine.submit([(1, ask())], [])
        with pytest.raises(ServerLost, match="an event of the stream is longer"):
            await engine.collect()


async def test_a_gateway_that_answers_anything_later_ends_nothing(far_end):
    statuses = []
    list_models = far_end.models

    async def models(request):
        return web.Response(status=statuses.pop(), text="gateway") if statuses else await list_models(request)

    far_end.models = models
    async with running(far_end) as engine:
        for code in (400, 403, 404, 429, 500):
            statuses.append(code)
            with pytest.raises(ServerLost, match=f"HTTP {code}"):
                await engine.start()
        await engine.start()


async def test_a_server_that_cuts_answers_stays_refused(far_end):
    far_end.script = send(event(0, "The answer", 3, "length"))
    async with running(far_end) as engine:
        engine.submit([(1, ask())], [])
        with pytest.raises(InputError, match="cuts answers at 3 tokens where 8 were asked for.*max_new_tokens"):
            await engine.collect()
        with pytest.raises(InputError, match="cuts answers"):
            await engine.start()


async def test_the_key_appears_nowhere(far_end, caplog):
    caplog.set_level("DEBUG")
    far_end.key = KEY
    shown = []

    async def script(body, say):
        message = f"Bearer {KEY} may not".encode()
        return await (status(400, message) if body["seed"] == 0 else send(b"data: " + message + b"\n\n"))(body, say)

    far_end.script = script
    async with running(far_end, api_key=KEY) as engine:
        engine.submit([(0, ask(seed=0))], [])
        shown.append(repr(await engine.collect()))
        engine.submit([(1, ask(seed=1))], [])
        with pytest.raises(ServerLost) as lost:
            await engine.collect()
        shown += traceback.format_exception(lost.value) + [repr(vars(lost.value)), repr(engine), engine.name]
    async with far_end.serve() as url:
        with pytest.raises(InputError) as refused:
            await make_engine(url, api_key=KEY + "x").start()
        shown += traceback.format_exception(refused.value)
    text = "".join(shown) + caplog.text
    assert "Bearer *** may not" in text
    assert KEY not in text


# --- start ---------------------------------------------------------------------------------------------


async def test_a_refused_key_ends_the_run(far_end):
    far_end.key = KEY
    async with far_end.serve() as url:
        for key in ({}, {"api_key": "sk-other"}):
            with pytest.raises(InputError, match=f"{url} refuses the key .HTTP 401: Unauthorized.*set api_key"):
                await make_engine(url, **key).start()


async def test_only_at_the_first_start_no_answer_ends_the_run(far_end):
    async with running(far_end) as engine:
        pass
    with pytest.raises(ServerLost, match="ClientConnector"):
        await engine.start()
    with pytest.raises(InputError, match="does not answer.*start it, correct base_url"):
        await make_engine(engine.name.removeprefix("server ")).start()


async def test_a_list_of_models_alone_does_not_count_as_up(far_end, monkeypatch):
    monkeypatch.setattr(vllm_server, "_START_S", 0.2)

    async def hang(body, say):
        await asyncio.Event().wait()

    far_end.answer = hang
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not answer .no sample within 0.2 s"):
            await make_engine(url).start()
        await until(lambda: far_end.open == 0)


@pytest.mark.parametrize("path", ["", "/v1/models", "/v2"])
async def test_an_address_without_completions_is_refused(far_end, path):
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="base_url is that of a vLLM server's OpenAI API"):
            await make_engine(url.removesuffix("/v1") + path).start()


async def test_a_malformed_list_of_models_is_refused(far_end):
    async def models(request):
        return web.Response(text="<html>Welcome</html>")

    far_end.models = models
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not answer with a list of models, but <html>Welcome"):
            await make_engine(url).start()


async def test_a_stream_without_token_counts_is_refused(far_end):
    async def answer(body, say):
        await say(event(0, "x", 1, usage=None))

    far_end.answer = answer
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not count the tokens"):
            await make_engine(url).start()


async def test_a_base_url_may_end_in_a_slash(far_end):
    async with far_end.serve() as url:
        engine = make_engine(url + "/")
        await engine.start()
        await engine.stop()


@pytest.mark.parametrize("url", ["http://me:sk-1@node7/v1", "http://sk-1@node7/v1", "http://node7/v1?key=sk-1"])
def test_a_secret_in_the_base_url_is_refused_unrepeated(url):
    with pytest.raises(InputError, match="give the key as api_key") as refused:
        server = Server.model_construct(base_url=url, model="", api_key=None)  # the config refuses it before
        ServerEngine(server, POLICY, Path("/models/policy"), "f00d", str.split)
    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(InputError, match="http://node7/v1: the api_key is empty, or holds"):
        make_engine("http://node7/v1", api_key=key)
