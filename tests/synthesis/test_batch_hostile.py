"""The batch transport against a server that is broken or hostile: nothing paid is lost, and everything ends."""

import asyncio
import json

import pytest
from aiohttp import web
from batch_cases import (
    FileQueue,
    quick_backoff,  # noqa: F401 - a fixture of every test here
    settings,
)

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.runtime.http import event_stream
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.client import batch_api
from medssr_dist.synthesis.client.batch_api import BatchApi
from medssr_dist.synthesis.client.batch_runner import BatchRunner


def answer(custom_id, status=200, **fields):
    body = {"choices": [{"message": {"content": f"reply {custom_id}"}, "finish_reason": "stop"}], "model": "m"} | fields
    line = {"custom_id": custom_id, "response": {"status_code": status, "body": body}}
    return json.dumps(line).encode() + b"\n"


def failed(custom_id, status, message, **fields):
    return answer(custom_id, status, error={"message": message, **fields})


class BatchServer:
    """A Batch API in memory; `lines(custom_ids, number)` writes the answer file of each batch."""

    def __init__(self, lines, **state):
        self.lines, self.state = lines, state
        self.files, self.batches, self.downloads, self.bodies = {}, {}, 0, []

    async def upload(self, request):
        part = None
        async for part in await request.multipart():
            if part.name == "file":
                lines = [json.loads(line) for line in (await part.read()).splitlines()]
        self.bodies += [line["body"] for line in lines]
        self.files[f"in-{len(self.files)}"] = [line["custom_id"] for line in lines]
        return web.json_response({"id": f"in-{len(self.files) - 1}"})

    async def create(self, request):
        order = await request.json()
        name = f"b-{len(self.batches)}"
        content = self.lines(self.files[order["input_file_id"]], len(self.batches))
        self.batches[name] = {"id": name, "metadata": order["metadata"], "content": content}
        return web.json_response({"id": name})

    async def poll(self, request):
        name = request.match_info["id"]
        return web.json_response({"id": name, "status": "completed", "output_file_id": f"out-{name}"} | self.state)

    async def download(self, request):
        self.downloads += 1
        content = self.batches[request.match_info["id"].removeprefix("out-")]["content"]
        return web.Response(body=content(self.downloads) if callable(content) else content)


async def serve(server, work):
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/files", server.upload)
    app.router.add_post("/v1/batches", server.create)
    app.router.add_get("/v1/batches/{id}", server.poll)
    app.router.add_get("/v1/files/{id}/content", server.download)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        return await work(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    finally:
        await runner.cleanup()


def run_batches(folder, server, count=10, retry=None, **fields):
    """Run `count` requests; return the outcomes by index and the queue."""
    queue = FileQueue(folder, count)

    async def work(url):
        synthesis = settings(url, retry={"patience_s": 5, "tries": 3} | (retry or {}), **fields)
        await asyncio.wait_for(BatchRunner(synthesis, synthesis.endpoints, folder).run(queue), 120)

    asyncio.run(serve(server, work))
    return {row["index"]: row for row in read_jsonl(queue.path)}, queue


BAD_LINES = {
    "no JSON": b"{oops\n",
    "a number": b"5\n",
    "no id": b'{"response": null}\n',
    "an id that is none": b'{"custom_id": [1], "response": {}}\n',
    "too long": b'{"custom_id": "3", "x": "' + b"x" * 2**21 + b'"}\n',
    "deep": b"[" * 200_000 + b"\n",
    "bytes": b"\xff\xfe\x00\n",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_costs_that_line_alone(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(event_stream.read_lines, "__defaults__", (2**20,))

    def lines(ids, number):
        return b"".join(BAD_LINES[kind] if each == "3" and number == 0 else answer(each) for each in ids)

    server = BatchServer(lines)
    rows, queue = run_batches(tmp_path, server)
    assert [rows[n]["text"] for n in range(10)] == [f"reply {n}" for n in range(10)]
    assert len(server.batches) == 2 and len(server.bodies) == 11  # the nine others were bought once
    assert queue.counts["lost"] == 1  # it may have been billed


def test_a_line_that_arrives_whole_later_is_not_bought_again(tmp_path):
    def lines(ids, number):
        whole = b"".join(map(answer, ids))
        return lambda download: whole if download > 1 else whole[:-9]

    server = BatchServer(lines)
    rows, queue = run_batches(tmp_path, server)
    assert len(rows) == 10 and len(server.bodies) == 10 and server.downloads == 2 and not queue.counts["lost"]


def test_replies_are_kept_one_by_one_when_a_download_breaks(tmp_path, monkeypatch):
    def explode(self, line):
        if b'"7"' in line:
            raise RuntimeError("a bug in the middle of the file")
        return parse(self, line)

    parse = BatchApi._parse_line
    monkeypatch.setattr(BatchApi, "_parse_line", explode)
    server = BatchServer(lambda ids, number: b"".join(map(answer, ids)))
    with pytest.raises(RuntimeError):
        run_batches(tmp_path, server)
    assert [row["index"] for row in read_jsonl(tmp_path / "outcomes.jsonl")] == list(range(7))


OUTCOMES = {
    "no response": ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, Scope.TRY),
    "load": ({"response": None, "error": {"code": "rate_limit_exceeded", "message": "x"}}, Scope.LOAD),
    "a text": ({"response": "x"}, Scope.TRY),
    "a list": ({"response": [1]}, Scope.TRY),
    "status is text": ({"response": {"status_code": "abc"}}, Scope.TRY),
    "status is infinite": ({"response": {"status_code": float("inf")}}, Scope.TRY),
    "status is a list": ({"response": {"status_code": [1], "body": {}}}, Scope.TRY),
    "body is a number": ({"response": {"status_code": 200, "body": 5}}, Scope.ADDRESS),
    "body is deep": ({"response": {"status_code": 200, "body": {"error": {"a": [[[[[[[[[[[[]]]]]]]]]]]]}}}}, Scope.TRY),
    "nothing": ({}, Scope.TRY),
    "filter": ({"response": {"status_code": 400, "body": {"error": {"code": "content_filter"}}}}, Scope.CONTENT),
    "key": ({"response": {"status_code": 401, "body": {}}}, Scope.KEY),
}


def make_api(**fields):
    synthesis = settings("http://127.0.0.1:9/v1", **fields)
    return BatchApi(synthesis.endpoints[0], synthesis, asyncio.sleep)


@pytest.mark.parametrize("kind", OUTCOMES)
async def test_an_outcome_of_any_form_is_classified(kind):
    line, scope = OUTCOMES[kind]
    failure = make_api().parse_outcome(line)
    assert failure.scope is scope and failure.reason.isprintable()


async def test_an_outcome_holds_no_key_and_no_absurd_usage():
    key = "sk-very-secret-42"
    api = make_api(api_key=key)
    assert key not in repr(api.parse_outcome({"error": {"k": key, "message": f"bad {key}"}}))
    body = {"choices": [{"message": {"content": f"x {key}"}}], "usage": {"prompt_tokens": float("inf")}}
    for sent in (body, json.dumps(body)):  # some servers send the body as text
        reply = api.parse_outcome({"response": {"status_code": 200, "body": sent}})
        assert (reply.text, reply.prompt_tokens) == ("x ***", 0)


def test_an_account_that_fails_within_a_batch_gives_nothing_up(tmp_path):
    def lines(ids, number):
        if number == 0:
            return b"".join(answer(n) if int(n) < 4 else failed(n, 400, "credit balance is too low") for n in ids)
        return b"".join(map(answer, ids))

    server = BatchServer(lines)
    with pytest.raises(InputError, match="no credit or quota left"):
        run_batches(tmp_path, server)
    rows, _ = run_batches(tmp_path, server)
    assert [rows[n]["text"] for n in range(10)] == [f"reply {n}" for n in range(10)]
    assert len(server.bodies) == 10 + 6  # only what had no reply was sent again


def test_what_is_refused_for_its_own_sake_is_given_up_alone(tmp_path):
    def lines(ids, number):
        return b"".join(failed(n, 403, "flagged") if int(n) % 3 == 0 else answer(n) for n in ids)

    rows, _ = run_batches(tmp_path, BatchServer(lines))
    assert sorted(n for n, row in rows.items() if row.get("gave_up") == "refused_by_api") == [0, 3, 6, 9]


def test_load_does_not_use_up_tries(tmp_path):
    def lines(ids, number):
        return b"".join(failed(n, 429, "slow") if n == "5" and number < 6 else answer(n) for n in ids)

    rows, queue = run_batches(tmp_path, BatchServer(lines), retry={"tries": 2})
    assert rows[5]["text"] == "reply 5" and not queue.counts["lost"]


def test_batches_that_bring_nothing_end_after_patience(tmp_path):
    server = BatchServer(lambda ids, number: b"".join(failed(n, 429, "slow") for n in ids))
    with pytest.raises(InputError, match="no reply for retry.patience_s = 0.3 s"):
        run_batches(tmp_path, server, retry={"patience_s": 0.3})
    assert not (tmp_path / "outcomes.jsonl").exists() and len(server.batches) < 40


def test_the_name_of_the_token_limit_follows_the_server(tmp_path):
    def lines(ids, number):
        if number == 0:
            return b"".join(failed(n, 400, "max_tokens is not supported; use max_completion_tokens") for n in ids)
        return b"".join(map(answer, ids))

    server = BatchServer(lines)
    rows, _ = run_batches(tmp_path, server)
    assert len(rows) == 10 and {"max_completion_tokens" in body for body in server.bodies[10:]} == {True}


# --- calls ---------------------------------------------------------------------------------------------

CALLS = {
    "list without end": (b'{"data":[{"id":"x","metadata":{}}],"has_more":true}', lambda a: a.find({"a": "b"})),
    "data is a number": (b'{"data":5}', lambda a: a.find({"a": "b"})),
    "data of numbers": (b'{"data":[5]}', lambda a: a.find({"a": "b"})),
    "batch without id": (b'{"data":[{"metadata":{"a":"b"}}]}', lambda a: a.find({"a": "b"})),
    "id that leads elsewhere": (b'{"id":"../../admin"}', lambda a: a.create("f", {"a": "b"})),
    "id that is none": (b'{"id":{"a":1}}', lambda a: a.create("f", {"a": "b"})),
    "deep": (b'{"id":' + b"[" * 200_000, lambda a: a.create("f", {"a": "b"})),
    "status that is none": (b'{"status":5}', lambda a: a.read_state("b", {})),
    "file that is none": (b'{"status":"completed","output_file_id":[1]}', lambda a: a.read_state("b", {})),
    "a page": (b"<html>", lambda a: a.read_state("b", {})),
}


@pytest.mark.parametrize("kind", CALLS)
async def test_calls_that_are_answered_with_nonsense_end(kind):
    body, call = CALLS[kind]
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        return web.Response(body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        synthesis = settings(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", retry={"patience_s": 0.3})
        async with BatchApi(synthesis.endpoints[0], synthesis, asyncio.sleep) as api:
            with pytest.raises(InputError, match="patience_s"):
                await call(api)
    finally:
        await runner.cleanup()
    assert calls < 200


async def test_a_list_of_new_pages_without_end_is_left(monkeypatch):
    monkeypatch.setattr(batch_api, "_MOST_PAGES", 20)
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        return web.json_response({"data": [{"id": f"b{calls}", "metadata": {}}], "has_more": True})

    app = web.Application()
    app.router.add_get("/v1/batches", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    synthesis = settings(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", retry={"patience_s": 0.0})
    try:
        async with BatchApi(synthesis.endpoints[0], synthesis, asyncio.sleep) as api:
            with pytest.raises(InputError, match="list of batches does not end"):
                await api.find({"a": "b"})
    finally:
        await runner.cleanup()
    assert calls == 20


def test_states_of_odd_forms_are_read():
    state = batch_api._parse_state(
        {
            "status": "in\x1b[31m\nprogress",
            "request_counts": {"completed": "x", "failed": -1},
            "errors": [{"code": 5}, 7],
        }
    )
    assert state.status.isprintable() and state.answered == 0 and state.errors[0].code == "5"
