"""The handle of a vLLM server: against a far end that misbehaves on demand, and against the real server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.config import Policy, Runtime, Server
from medssr_dist.errors import InputError
from medssr_dist.runtime import servers
from medssr_dist.runtime.device import engine_env, engine_kwargs
from medssr_dist.runtime.models import load_tokenizer, model_fingerprint
from medssr_dist.runtime.pool import Taken
from medssr_dist.runtime.requests import Completion, Request
from medssr_dist.runtime.served_models import ModelCard, find_policy
from medssr_dist.runtime.servers import ServerEngine, ServerLost

OPTIONS = {"A": "scurvy", "B": "rickets", "C": "gout", "D": "pellagra"}
POLICY = Policy(model="models/policy", max_model_len=64)
CARD = {"id": "policy", "object": "model", "owned_by": "vllm", "root": "models/policy", "max_model_len": 64}
KEY = "sk-very-secret-42"


def ask(n: int = 1, seed: int = 0, prompt: str = "which vitamin", **fields) -> Request:
    return Request(key="q", prompt=prompt, options=OPTIONS, n=n, seed=seed, max_tokens=8, **fields)


def event(index: int, text: str, tokens: int, end: str | None = None, **fields) -> bytes:
    chunk = {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": end}]}
    chunk |= {"usage": {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens}} | fields
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def stated(seed: int) -> str:
    return f"The answer is ({'ABCD'[seed % 4]})."


class FarEnd:
    """A server of completions. `script(body, say)` answers what comes after the trial request of `start`."""

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


@pytest.fixture
async def far_end():
    return FarEnd()


def handle(url: str, **server) -> ServerEngine:
    config = Server(base_url=url, **server)
    return ServerEngine(
        config, POLICY, Path("/models/policy"), "f00d", lambda text: [len(word) for word in text.split()]
    )


@asynccontextmanager
async def running(far_end: FarEnd, **server):
    async with far_end.serve() as url:
        engine = handle(url, **server)
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()


async def take_all(engine: ServerEngine, samples: int) -> Taken:
    whole = Taken()
    while len(whole.samples) < samples:
        taken = await engine.take()
        assert not taken.failed
        whole.samples += taken.samples
        whole.tokens += taken.tokens
    return whole


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# --- samples -------------------------------------------------------------------------------------------


async def test_a_sample_a_seed(far_end):
    async with running(far_end) as engine:
        engine.give([(7, ask(n=3, seed=5)), (8, ask(n=1, seed=2))], [])
        taken = await take_all(engine, 4)
    by_seed = sorted(taken.samples, key=lambda pair: (pair[0], pair[1].seed))
    letters = {2: "C", 5: "B", 6: "C", 7: "D"}
    assert [(lease, sample.seed) for lease, sample in by_seed] == [(7, 5), (7, 6), (7, 7), (8, 2)]
    for _, sample in by_seed:
        assert sample == Completion(sample.seed, stated(sample.seed), 5, False, letters[sample.seed], "statement")
    assert taken.tokens == 4 * 5


async def test_every_sampling_parameter_is_spelled_out(far_end):
    async with running(far_end) as engine:
        engine.give([(1, ask(n=2, seed=9, temperature=0.6, top_p=0.95, top_k=20))], [])
        await take_all(engine, 2)
    asked = {"model": "policy", "prompt": [5, 7], "n": 2, "seed": 9, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    neutral = {"max_tokens": 8, "min_p": 0.0, "repetition_penalty": 1.0, "stream": True}
    streamed = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream_interval": 16}
    assert far_end.bodies == [asked | neutral | streamed]


async def test_samples_are_handed_over_as_they_finish(far_end):
    go_on = asyncio.Event()

    async def script(body, say):
        await say(event(1, "(B)", 2, "stop") + event(0, "(", 1))
        await go_on.wait()
        await say(event(0, "A)", 3, "length", usage={"completion_tokens": 8}))

    far_end.script = script
    async with running(far_end) as engine:
        engine.give([(1, ask(n=2))], [])
        first = await engine.take()
        assert [(sample.seed, sample.answer) for _, sample in first.samples] == [(1, "B")]
        go_on.set()
        second = await take_all(engine, 1)
    assert second.samples == [(1, Completion(0, "(A)", 8, True, "A", "bracketed"))]
    assert first.tokens + second.tokens == 2 + 8


async def test_tokens_are_told_while_no_sample_ends(far_end, monkeypatch):
    monkeypatch.setattr(servers, "_BEAT_S", 0.01)

    async def script(body, say):
        await say(event(0, "thinking", 4) + b": keep-alive\n\n")
        await asyncio.Event().wait()

    far_end.script = script
    async with running(far_end) as engine:
        engine.give([(1, ask())], [])
        assert await engine.take() == Taken(tokens=4)
        with pytest.raises(asyncio.TimeoutError):  # comments are no tokens: a server that hangs says nothing
            await asyncio.wait_for(engine.take(), 0.1)


async def test_room_in_the_context(far_end):
    async with running(far_end) as engine:
        engine.give([(1, ask(prompt="word " * 60)), (2, ask(n=2, seed=3, prompt="word " * 64))], [])
        taken = await take_all(engine, 3)
    assert [body["max_tokens"] for body in far_end.bodies] == [4]
    full = [sample for lease, sample in taken.samples if lease == 2]
    assert full == [Completion(3, "", 0, True), Completion(4, "", 0, True)]


async def test_choices_are_token_ids(far_end):
    async with running(far_end) as engine:
        engine.give([(1, ask(choices=("A", "Bb"), temperature=0.6, top_p=0.9, top_k=3))], [])
        await take_all(engine, 1)
        engine.give([(2, ask(choices=("A", "two words")))], [])
        [(lease, reason)] = (await engine.take()).failed
    body = far_end.bodies[0]
    assert body["allowed_token_ids"] == [1, 2]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.0, 1.0, 0, 1)
    assert (lease, len(far_end.bodies)) == (2, 1)
    assert "single tokens" in reason


# --- aborting ------------------------------------------------------------------------------------------


async def test_abort_closes_the_connection_of_that_lease_alone(far_end):
    go_on = asyncio.Event()

    async def script(body, say):
        await say(event(0, "(A)", 1, "stop"))
        await go_on.wait()
        await say(event(1, "(B)", 1, "stop"))

    far_end.script = script
    async with running(far_end) as engine:
        engine.give([(1, ask(n=2)), (2, ask(n=2))], [])
        await until(lambda: len(engine._taken.samples) == 2)
        engine.give([], [1, 77])  # 77 has ended long ago
        await until(lambda: far_end.open == 1)
        go_on.set()
        taken = await take_all(engine, 3)
    assert sorted((lease, sample.seed) for lease, sample in taken.samples) == [(1, 0), (2, 0), (2, 1)]


async def test_stop_leaves_a_server_that_hangs(far_end):
    async def script(body, say):
        await asyncio.Event().wait()

    far_end.script = script
    async with running(far_end) as engine:
        engine.give([(lease, ask()) for lease in range(5)], [])
        await until(lambda: far_end.open == 5)
        await engine.stop()
        await until(lambda: far_end.open == 0)


# --- refusals and losses -------------------------------------------------------------------------------


async def test_a_refused_request_is_told_with_the_words_of_the_server(far_end):
    async def script(body, say):
        if body["seed"] == 0:
            return web.json_response({"error": {"message": "prompt is\ncursed", "code": 400}}, status=400)
        if body["seed"] == 1:
            await say(b'data: {"error": {"message": "out of vocabulary", "code": 400}}\n\ndata: [DONE]\n\n')
            return None
        return await far_end.answer(body, say)

    far_end.script = script
    async with running(far_end) as engine:
        engine.give([(lease, ask(seed=lease)) for lease in range(3)], [])
        whole = Taken()
        while len(whole.samples) + len(whole.failed) < 3:
            taken = await engine.take()
            whole.samples += taken.samples
            whole.failed += taken.failed
    assert sorted(whole.failed) == [(0, "HTTP 400: prompt is cursed"), (1, "HTTP 400: out of vocabulary")]
    assert [lease for lease, _ in whole.samples] == [2]


def status(code: int, body: bytes = b"{}"):
    async def script(request, say):
        return web.Response(status=code, body=body)

    return script


def says(*events: bytes, then: str | None = None):
    async def script(request, say):
        for each in events:
            await say(each)
        return then

    return script


LOSSES = {
    "overload": (status(429, b'{"error": "slow down"}'), "HTTP 429: slow down"),
    "engine dead": (status(500, b"EngineCore is dead"), "HTTP 500: EngineCore is dead"),
    "starting again": (status(503), "HTTP 503"),
    "key withdrawn": (status(401), "HTTP 401"),
    "model gone": (status(404), "HTTP 404"),
    "moved": (status(307), "HTTP 307"),
    "dies in the stream": (says(b'data: {"error": {"message": "gone", "code": 500}}\n\n'), "HTTP 500: gone"),
    "error of another form": (says(b'data: {"error": "gone"}\n\n'), "HTTP 500: gone"),
    "connection lost": (says(event(0, "(", 1), then="cut"), "Client"),
    "ends too early": (says(event(0, "(", 1), b"data: [DONE]\n\n"), "1 of 1 samples missing"),
    "aborted at the server": (says(event(0, "(", 1, "abort")), "finish_reason 'abort'"),
    "a sample too many": (says(event(1, "(", 1)), "sample 1 of 1"),
    "no JSON": (says(b"data: <html>\n\n"), "no completion: <html>"),
}


@pytest.mark.parametrize(("script", "words"), LOSSES.values(), ids=LOSSES)
async def test_a_lost_server_is_told_after_what_had_finished(far_end, script, words):
    finished = asyncio.Event()

    async def first_fine_then_lost(body, say):
        if body["seed"] == 0:
            await say(event(0, "(A)", 1, "stop"))
            finished.set()
            return await asyncio.Event().wait()
        await finished.wait()
        return await script(body, say)

    far_end.script = first_fine_then_lost
    async with running(far_end) as engine:
        engine.give([(1, ask(n=2)), (2, ask(seed=9))], [])
        await until(lambda: engine._lost)
        assert [lease for lease, _ in (await engine.take()).samples] == [1]
        with pytest.raises(ServerLost, match="(?s)" + words.replace("(", r"\(")):
            await engine.take()
        await until(lambda: far_end.open == 0)  # the server is rid of the rest

        far_end.script = far_end.answer
        await engine.start()
        engine.give([(3, ask(n=2))], [])
        assert {lease for lease, _ in (await take_all(engine, 2)).samples} == {3}


async def test_a_server_that_cuts_answers_is_refused_for_good(far_end):
    far_end.script = says(event(0, "The answer", 3, "length"))
    async with running(far_end) as engine:
        engine.give([(1, ask())], [])
        with pytest.raises(InputError, match="cuts answers at 3 tokens where 8 were asked for.*max_new_tokens"):
            await engine.take()
        with pytest.raises(InputError, match="cuts answers"):
            await engine.start()


async def test_the_key_appears_nowhere(far_end, caplog):
    caplog.set_level("DEBUG")
    far_end.key = KEY
    shown = []

    async def script(body, say):
        words = f"Bearer {KEY} may not".encode()
        return await (status(400, words) if body["seed"] == 0 else says(b"data: " + words + b"\n\n"))(body, say)

    far_end.script = script
    async with running(far_end, api_key=KEY) as engine:
        engine.give([(0, ask(seed=0))], [])
        shown.append(repr(await engine.take()))
        engine.give([(1, ask(seed=1))], [])
        with pytest.raises(ServerLost) as lost:
            await engine.take()
        shown += traceback.format_exception(lost.value) + [repr(vars(lost.value)), repr(engine), engine.name]
    async with far_end.serve() as url:
        with pytest.raises(InputError) as refused:
            await handle(url, api_key=KEY + "x").start()
        shown += traceback.format_exception(refused.value)
    text = "".join(shown) + caplog.text
    assert "Bearer *** may not" in text
    assert KEY not in text


# --- coming up -----------------------------------------------------------------------------------------


async def test_a_key_that_is_refused(far_end):
    far_end.key = KEY
    async with far_end.serve() as url:
        for key in ({}, {"api_key": "sk-other"}):
            with pytest.raises(InputError, match=f"{url} refuses the key .HTTP 401: Unauthorized.*set api_key"):
                await handle(url, **key).start()


async def test_no_answer_at_first_ends_the_run_and_later_does_not(far_end):
    async with running(far_end) as engine:
        pass
    with pytest.raises(ServerLost, match="ClientConnector"):
        await engine.start()
    with pytest.raises(InputError, match="does not answer.*start it, correct base_url"):
        await handle(engine.name.removeprefix("server ")).start()


async def test_an_engine_that_hangs_behind_its_list_of_models_is_not_up(far_end, monkeypatch):
    monkeypatch.setattr(servers, "_START_S", 0.2)

    async def silence(body, say):
        await asyncio.Event().wait()

    far_end.answer = silence
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not answer .no sample within 0.2 s"):
            await handle(url).start()
        await until(lambda: far_end.open == 0)


@pytest.mark.parametrize("path", ["", "/v1/models", "/v2"])
async def test_an_address_that_is_no_completions_api(far_end, path):
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="base_url is that of a vLLM server's OpenAI API"):
            await handle(url.removesuffix("/v1") + path).start()


async def test_a_list_of_models_that_is_none(far_end):
    async def models(request):
        return web.Response(text="<html>Welcome</html>")

    far_end.models = models
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not answer with a list of models, but <html>Welcome"):
            await handle(url).start()


async def test_a_stream_without_counts_is_refused(far_end):
    async def answer(body, say):
        await say(event(0, "x", 1, usage=None))

    far_end.answer = answer
    async with far_end.serve() as url:
        with pytest.raises(InputError, match="does not count the tokens"):
            await handle(url).start()


async def test_a_base_url_may_end_in_a_slash(far_end):
    async with far_end.serve() as url:
        engine = handle(url + "/")
        await engine.start()
        await engine.stop()


@pytest.mark.parametrize("url", ["http://me:sk-1@node7/v1", "http://sk-1@node7/v1", "http://node7/v1?key=sk-1"])
def test_a_base_url_with_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(InputError, match="give the key as api_key") as refused:
        handle(url)
    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry(key):
    with pytest.raises(InputError, match="api_key of http://node7/v1 is empty, or holds"):
        handle("http://node7/v1", api_key=key)


# --- is it the policy ----------------------------------------------------------------------------------


def found(*cards: dict, name: str = "", policy: Policy = POLICY, folder: Path = Path("/models/policy"), print_="f00d"):
    server = Server(base_url="http://node7:8000/v1", model=name)
    return find_policy([ModelCard(**card) for card in cards], server, policy, folder, print_)


@pytest.mark.parametrize(
    ("cards", "name", "words"),
    [
        ([], "", "serves nothing; name the one"),
        ([{"id": "a"}, {"id": "b"}], "", "serves 'a', 'b'; name the one that is the policy"),
        ([{"id": "a"}, {"id": "b"}], "c", "serves 'a', 'b', not 'c'"),
        ([{"id": "a"}, {"id": "tuned", "parent": "a"}], "tuned", "is an adapter of 'a'"),
        ([{"id": "policy", "owned_by": "sglang"}], "", "is a server of 'sglang'"),
        ([{"id": "x", "root": "Qwen/Qwen3-8B"}], "", "serves 'x' from 'Qwen/Qwen3-8B', which is not named as policy"),
        ([{"id": "policy", "max_model_len": 63}], "", "max_model_len = 63.*restart it with --max-model-len 64"),
    ],
)
def test_a_server_of_another_model_is_refused(cards, name, words):
    with pytest.raises(InputError, match=f"voting.servers: http://node7:8000/v1.*{words}"):
        found(*cards, name=name)


def test_the_policy_is_found():
    assert found({"id": "anything"}) == "anything"  # a server that tells nothing but a name
    assert found({"id": "x", "root": "/elsewhere/Policy", "max_model_len": 128, "owned_by": "vllm"}) == "x"
    assert found({"id": "x", "root": "/model"}, name="x") == "x"  # the user says so
    assert found({"id": "x", "root": "m/policy"}, {"id": "y", "root": "m/policy"}) == "x"  # two names of one
    assert found({"id": "x", "root": "m/policy"}, {"id": "y", "root": "adapter", "parent": "x"}) == "x"
    assert found({"id": "x", "root": "m/policy"}, {"id": "y", "root": "z"}, name="x") == "x"


def test_a_directory_that_is_here_too_is_compared_by_weights(tmp_path):
    mine, copy, other = (tmp_path / name / "policy" for name in ("mine", "copy", "other"))
    for folder, weights in ((mine, b"1"), (copy, b"1"), (other, b"2")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
    fields = {"policy": Policy(model=str(mine)), "folder": mine, "print_": model_fingerprint(mine), "name": "x"}
    assert found({"id": "x", "root": str(copy)}, **fields) == "x"
    with pytest.raises(InputError, match="which has other weights than policy.model"):
        found({"id": "x", "root": str(other)}, **fields)


# --- the stream as bytes -------------------------------------------------------------------------------


class Pieces:
    """A stream that arrives in given pieces."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = pieces

    async def iter_any(self):
        for piece in self._pieces:
            yield piece


@given(st.data())
async def test_pieces_come_together_wherever_the_stream_is_cut(data):
    texts = data.draw(st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=4), min_size=1, max_size=4))
    order = data.draw(st.permutations([index for index, pieces in enumerate(texts) for _ in pieces]))
    stream, said = b"", [0] * len(texts)
    for index in order:
        said[index] += 1
        ends = "stop" if said[index] == len(texts[index]) else None
        text = texts[index][said[index] - 1]
        chunk = {"choices": [{"index": index, "text": text, "finish_reason": ends}]}
        chunk["usage"] = {"completion_tokens": 2 * said[index]}
        stream += (
            b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + data.draw(st.sampled_from([b"\n", b"\r\n"]))
        )
        stream += b"\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    growing, samples = servers._Growing(ask(n=len(texts), seed=10), 8), []
    async for line in servers._events(Pieces(pieces)):
        if sample := growing.add(servers.msgspec.json.decode(line, type=servers._Chunk)):
            samples.append(sample)
    assert {sample.seed - 10: sample.text for sample in samples} == {i: "".join(t) for i, t in enumerate(texts)}
    assert (growing.missing, growing.tokens) == (0, 2 * len(order))


# --- the real server -----------------------------------------------------------------------------------

LENGTH = 256
PROMPTS = ["Pick the letter that is named :", "Option A Option B . Pick", "the letter"]
OFFLINE = """
import json, sys
import vllm
kwargs, prompts = json.loads(sys.argv[1])
llm = vllm.LLM(**kwargs, disable_log_stats=True)
params = vllm.SamplingParams(n=4, seed=3, temperature=1.0, top_p=0.9, top_k=12, max_tokens=24)
outputs = [llm.generate(vllm.TokensPrompt(prompt_token_ids=ids), params, use_tqdm=False)[0] for ids in prompts]
print(json.dumps([[(o.text, len(o.token_ids), o.finish_reason) for o in output.outputs] for output in outputs]))
"""


@pytest.fixture(scope="module")
def policy_folder(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with a generation config that asks for other sampling than a vote."""
    folder = tmp_path_factory.mktemp("served") / "policy"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    settings = {"eos_token_id": 2, "repetition_penalty": 1.8, "temperature": 0.1, "top_k": 2, "min_p": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def vllm_server(policy_folder, tmp_path_factory):
    """The address of `vllm serve` on that model, up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(policy_folder), "--served-model-name", "tiny", "--api-key", KEY, "--enforce-eager"]
    command += ["--max-model-len", str(LENGTH), "--dtype", "bfloat16", "--max-num-seqs", "32"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    env = os.environ | engine_env(Runtime(), 1)
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


@asynccontextmanager
async def real(url: str, folder: Path):
    policy = Policy(model=str(folder), max_model_len=LENGTH)
    tokenizer = load_tokenizer(folder, policy)
    engine = ServerEngine(
        Server(base_url=url, api_key=KEY), policy, folder, model_fingerprint(folder),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )  # fmt: skip
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def offline(policy_folder) -> list[list[Completion]]:
    """The samples of a vLLM engine of our own, for `PROMPTS`."""
    policy = Policy(model=str(policy_folder), max_model_len=LENGTH)
    tokenizer = load_tokenizer(policy_folder, policy)
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    argument = json.dumps([engine_kwargs(policy_folder, policy, Runtime(enforce_eager=True), 1), ids])
    command, env = [sys.executable, "-c", OFFLINE, argument], os.environ | engine_env(Runtime(), 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [Completion.of(ask(), 3 + i, text, tokens, end == "length") for i, (text, tokens, end) in enumerate(samples)]
        for samples in json.loads(done.stdout.splitlines()[-1])
    ]


async def drawn(engine: ServerEngine, *requests: Request) -> list[Completion]:
    engine.give(list(enumerate(requests)), [])
    samples = (await take_all(engine, sum(request.n for request in requests))).samples
    return [sample for _, sample in sorted(samples, key=lambda pair: (pair[0], pair[1].seed))]


@pytest.mark.slow
async def test_a_real_server_draws_what_our_engine_draws(offline, vllm_server, policy_folder):
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 12}
    requests = [replace(ask(n=4, seed=3, prompt=prompt, **sampling), max_tokens=24) for prompt in PROMPTS]
    async with real(vllm_server, policy_folder) as engine:
        whole = [await drawn(engine, request) for request in requests]
        apart = await drawn(engine, replace(requests[0], n=2), replace(requests[0], n=2, seed=5))
        chosen = await drawn(engine, ask(prompt=PROMPTS[0], choices=("C", "D")))
        full = await drawn(engine, ask(prompt=" ".join(["letter"] * (LENGTH - 2)), n=4))
    assert whole == offline
    assert len({sample.text for samples in whole for sample in samples}) > 4  # no min_p, no top_k = 2
    assert apart == whole[0]
    assert [(sample.text in ("C", "D"), sample.tokens) for sample in chosen] == [(True, 1)]
    assert all(sample.tokens <= 2 for sample in full)


@pytest.mark.slow
async def test_a_real_server_aborts_what_nobody_waits_for(vllm_server, policy_folder):
    def finished() -> float:
        with urllib.request.urlopen(vllm_server.removesuffix("/v1") + "/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))

    long = replace(ask(n=16, prompt=PROMPTS[0]), max_tokens=200)
    async with real(vllm_server, policy_folder) as engine:
        before = finished()
        engine.give([(lease, long) for lease in range(24)], [])
        assert (await engine.take()).samples
        engine.give([], list(range(24)))
        # The server runs 32 samples at once, first come first served: these would come after all of the others.
        assert len(await drawn(engine, ask(n=2, prompt=PROMPTS[0]))) == 2
        assert finished() - before < 24 * 16


@pytest.mark.slow
async def test_a_real_server_refuses_in_words(vllm_server, policy_folder):
    async with real(vllm_server, policy_folder) as engine:
        engine.give([(4, ask(prompt=PROMPTS[0], n=2, temperature=0.0))], [])
        [(lease, reason)] = (await engine.take()).failed
    assert lease == 4
    assert reason.startswith("HTTP 400: ")
    with pytest.raises(InputError, match="refuses the key"):
        await ServerEngine(Server(base_url=vllm_server), POLICY, policy_folder, "", str.split).start()
