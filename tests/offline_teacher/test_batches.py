"""The offline teacher's Batch API."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.request

import aiohttp
import pytest
from teacher_calls import chat_body, refused, stats

from medssr_dist.offline_teacher import start_teacher


def call(url, body=None):
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as response:
        return json.load(response)


def upload(url, lines):
    form = aiohttp.FormData({"purpose": "batch"})
    content = "".join(json.dumps(line) + "\n" for line in lines)
    form.add_field("file", content.encode(), filename="batch.jsonl", content_type="application/jsonl")

    async def send():
        async with aiohttp.ClientSession() as session, session.post(url + "/files", data=form) as response:
            return (await response.json())["id"]

    return asyncio.run(send())


def batch_lines(count):
    return [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": chat_body(metadata={"n": n})}
        for n in range(count)
    ]


def create(url, file_id, **metadata):
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return call(url + "/batches", asked | {"metadata": metadata})


def ended(url, batch_id):
    deadline = time.monotonic() + 10
    seen = []
    while time.monotonic() < deadline:
        state = call(f"{url}/batches/{batch_id}")
        seen.append(state["status"])
        if state["status"] in ("completed", "failed", "expired", "cancelled"):
            return state, seen
        time.sleep(0.01)
    pytest.fail(f"the batch did not end: {seen}")


def content(url, file_id):
    with urllib.request.urlopen(f"{url}/files/{file_id}/content") as response:
        return [json.loads(line) for line in response.read().splitlines()]


def test_a_batch_completes_with_answers_in_another_order(tmp_path):
    with start_teacher(tmp_path / "log", options=["--batch-delay-s", "0.3", "--rate-429", "0.2"]) as url:
        batch = create(url, upload(url, batch_lines(40)), run="a")
        state, seen = ended(url, batch["id"])
        good, bad = content(url, state["output_file_id"]), content(url, state["error_file_id"])
        assert list(dict.fromkeys(seen)) == ["validating", "in_progress", "completed"]
        assert state["request_counts"] == {"total": 40, "completed": len(good), "failed": len(bad)} and bad
        order = [int(line["custom_id"]) for line in good]
        assert sorted(order + [int(line["custom_id"]) for line in bad]) == list(range(40)) and order != sorted(order)
        assert {line["response"]["status_code"] for line in bad} == {429}
        assert all(line["response"]["body"]["choices"] for line in good)
        assert stats(url)["replies"] == {key: len(good) for key in stats(url)["tries"]}


def test_batches_are_listed_newest_first_by_pages(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        file_id = upload(url, batch_lines(1))
        made = [create(url, file_id, number=str(n))["id"] for n in range(5)]
        first = call(url + "/batches?limit=3")
        second = call(f"{url}/batches?limit=3&after={first['last_id']}")
    assert [batch["id"] for batch in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert first["data"][0]["metadata"] == {"number": "4"}


def test_cancelled_and_expired_batches_hand_out_what_is_done(tmp_path):
    with start_teacher(tmp_path / "log", options=["--batch-delay-s", "1"]) as url:
        batch = create(url, upload(url, batch_lines(20)))
        while call(f"{url}/batches/{batch['id']}")["request_counts"]["completed"] < 4:
            time.sleep(0.01)
        assert call(f"{url}/batches/{batch['id']}/cancel", {})["status"] == "cancelling"
        state, _ = ended(url, batch["id"])
        assert state["status"] == "cancelled" and 4 <= len(content(url, state["output_file_id"])) < 20
    with start_teacher(tmp_path / "log", options=["--rate-batch-expired", "1"]) as url:
        state, _ = ended(url, create(url, upload(url, batch_lines(20)))["id"])
        assert state["status"] == "expired" and len(content(url, state["output_file_id"])) == 10
        assert {line["error"]["code"] for line in content(url, state["error_file_id"])} == {"batch_expired"}


def test_broken_batches_are_refused(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        twice = batch_lines(1) * 2
        state, _ = ended(url, create(url, upload(url, twice))["id"])
        assert state["status"] == "failed" and state["errors"]["data"][0]["line"] == 2
        assert refused(call, url + "/batches", {"input_file_id": "none"})[0] == 400
        assert refused(create, url, "none")[0] == 400
        assert refused(call, url + "/files", {})[0] == 400
        for path in ("/batches/none", "/files/none/content"):
            assert refused(call, url + path)[0] == 404


def test_faults_of_batch_calls(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-created-500", "1"]) as url:
        file_id = upload(url, batch_lines(1))
        assert refused(create, url, file_id)[0] == 500
        assert len(call(url + "/batches")["data"]) == 1
    with start_teacher(tmp_path / "log", options=["--rate-bad-call", "1"]) as url:
        for _ in range(20):
            with pytest.raises((OSError, ValueError, http.client.HTTPException)):
                call(url + "/batches")
        assert len(stats(url)["calls"]) >= 4 and "list ok" not in stats(url)["calls"]
