"""The batch transport against the real teacher process: order, faults, and kills at chosen moments."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from batch_cases import (
    FileQueue,
    delivered,
    quick_backoff,  # noqa: F401 - a fixture of every test here
    run,
    settings,
    stats,
    times_served,
)

from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.synthesis.client.batch_ledger import BatchLedger


def rows(folder):
    return {row["index"]: row for row in read_jsonl(folder / "outcomes.jsonl")}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with start_teacher(tmp_path_factory.mktemp("teacher") / "log") as url:
        yield url


def test_each_request_gets_its_own_reply_whatever_the_order(teacher, tmp_path):
    queue = FileQueue(tmp_path, 50, "order")
    runner = run(settings(teacher), tmp_path, queue)
    assert delivered(tmp_path) == list(range(50)) and times_served(teacher, "order", 50) == [1] * 50
    assert [row["index"] for row in read_jsonl(queue.path)] != list(range(50))
    for index, row in rows(tmp_path).items():
        assert f"Disease {index} " in row["text"] or "Colchicine" in row["text"]
        assert f"sign order {index}" in row["text"] or "gout" in row["text"]
    assert runner.attempts == queue.counts["sent"] == 50 and queue.most_in_flight == 20
    assert [row["event"] for row in read_jsonl(SynthesisPaths(tmp_path).batches)].count("closed") == 3
    assert {path.name for path in tmp_path.iterdir()} == {SynthesisPaths(tmp_path).batches.name, "outcomes.jsonl"}


def test_batches_are_smaller_when_the_queue_gives_less(teacher, tmp_path):
    queue = FileQueue(tmp_path, 12, "less", at_once=5)
    run(settings(teacher), tmp_path, queue)
    sizes = [len(row["jobs"]) for row in read_jsonl(SynthesisPaths(tmp_path).batches) if row["event"] == "creating"]
    assert sizes == [5, 5, 2] and delivered(tmp_path) == list(range(12))


def test_failed_lines_go_into_the_next_batch_and_are_paid_once(tmp_path):
    options = ["--rate-429=0.15", "--rate-500=0.1", "--rate-hang=0.05", "--rate-reset=0.05", "--rate-nonjson=0.05"]
    with start_teacher(tmp_path / "log", options=options) as url:
        queue = FileQueue(tmp_path, 60, "lines")
        runner = run(settings(url, retry={"tries": 30}), tmp_path, queue)
        assert times_served(url, "lines", 60) == [1] * 60
    assert delivered(tmp_path) == list(range(60)) and queue.counts["reply"] == 60
    assert runner.attempts == queue.counts["sent"] == 60 + queue.counts["returned"] > 75
    assert queue.counts["lost"] == 0 and runner.read_states()[0].replies == 60


def test_lines_that_keep_failing_are_given_up(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-500", "1"]) as url:
        queue = FileQueue(tmp_path, 5)
        run(settings(url, retry={"tries": 3}), tmp_path, queue)
    assert {(row["gave_up"], "HTTP 500" in row["detail"]) for row in rows(tmp_path).values()} == {("no_reply", True)}
    assert queue.counts == {"sent": 15, "returned": 15, "no_reply": 5}


def test_replies_that_are_no_chat_completion_count_as_lost(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-wrong-schema", "0.4"]) as url:
        queue = FileQueue(tmp_path, 20)
        run(settings(url, retry={"tries": 20}), tmp_path, queue)
        assert stats(url)["outcomes"]["wrong_schema"] == queue.counts["lost"] > 0
    assert delivered(tmp_path) == list(range(20)) and queue.counts["returned"] == 0


def test_a_prompt_refused_for_good_is_given_up_alone(teacher, tmp_path):
    queue = FileQueue(tmp_path, 10, "refused")
    give = queue._give

    def spoilt(index):
        job = give(index)
        if index == 3:
            job.messages[-1] = {"role": "user", "content": "Hello"}  # the teacher answers it with 400
        return job

    queue._give = spoilt
    run(settings(teacher), tmp_path, queue)
    gave_up = {index: row["gave_up"] for index, row in rows(tmp_path).items() if "gave_up" in row}
    assert gave_up == {3: "refused_by_api"} and queue.counts["reply"] == 9


def test_settings_that_refuse_every_request_end_the_run(tmp_path):
    with start_teacher(tmp_path / "log", options=["--no-json-schema"]) as url:
        queue = FileQueue(tmp_path, 8, "schema")
        with pytest.raises(InputError, match="refuses every request of a batch .*not supported.*json_schema"):
            run(settings(url, json_schema=True), tmp_path, queue)
        assert not queue.known
        run(settings(url), tmp_path, FileQueue(tmp_path, 8, "schema"))
        assert times_served(url, "schema", 8) == [1] * 8


def test_expired_batches_deliver_replies_and_retry_the_rest(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-batch-expired", "1"]) as url:
        queue = FileQueue(tmp_path, 16, "expired")
        run(settings(url, retry={"tries": 10}), tmp_path, queue)
        assert sorted(times_served(url, "expired", 16)) == [0] + [1] * 15  # half of a batch of one request is zero
    ended = [row["why"] for row in read_jsonl(SynthesisPaths(tmp_path).batches) if row["event"] == "closed"]
    assert set(ended) == {"expired"} and len(ended) > 4
    assert queue.counts["reply"] == 15 and queue.counts["no_reply"] == 1


@pytest.mark.parametrize("option", ["--rate-created-500=1", "--rate-bad-call=0.4"])
def test_faults_of_calls_buy_no_batch_twice(tmp_path, option):
    with start_teacher(tmp_path / "log", options=[option]) as url:
        run(settings(url, batch_size=15), tmp_path, FileQueue(tmp_path, 60, "calls"))
        assert times_served(url, "calls", 60) == [1] * 60
        calls = stats(url)["calls"]
    assert delivered(tmp_path) == list(range(60)) and calls["create ok"] == 4
    if "bad-call" in option:
        assert sum(count for name, count in calls.items() if not name.endswith("ok")) > 5
    else:
        assert calls["list ok"] == 4


def test_several_endpoints_share_the_batches(tmp_path):
    options = ["--batch-delay-s", "0.1"]
    with start_teacher(tmp_path / "a", options=options) as one, start_teacher(tmp_path / "b", options=options) as two:
        runner = run(settings(one, batch_size=10, urls=[two]), tmp_path, FileQueue(tmp_path, 60))
        served = [sum(times_served(url, "", 60)) for url in (one, two)]
        assert sum(served) == 60 and min(served) >= 20
    assert Counter(row["model"] for row in rows(tmp_path).values()) == {"m0": served[0], "m1": served[1]}
    assert [state.replies for state in runner.read_states()] == served and delivered(tmp_path) == list(range(60))


def test_a_refused_key_ends_the_run_and_is_not_shown(tmp_path):
    key = "sk-very-secret-0123456789"
    with start_teacher(tmp_path / "log", options=["--expire-key-after", "0"]) as url:
        with pytest.raises(InputError, match="refuses the key") as error:
            run(settings(url, api_key=key), tmp_path, FileQueue(tmp_path, 5))
        assert stats(url)["calls"] == {"upload 401": 1}
    assert key not in str(error.value)
    assert all(key not in path.read_text() for path in tmp_path.iterdir())


def test_patience_ends(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-bad-call", "1"]) as url:
        with pytest.raises(InputError, match="retry.patience_s = 0.3"):
            run(settings(url, retry={"patience_s": 0.3}), tmp_path, FileQueue(tmp_path, 5))
        assert sum(stats(url)["calls"].values()) > 3


def test_a_server_without_the_batch_api_is_reported(tmp_path, teacher):
    with pytest.raises(InputError, match="offers the Batch API"):
        run(settings(teacher + "/none"), tmp_path, FileQueue(tmp_path, 5))


def test_a_batch_that_the_server_fails_ends_the_run(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("medssr_dist.synthesis.client.batch_runner.CHAT_PATH", "/v1/other")
    queue = FileQueue(tmp_path, 5)
    with pytest.raises(InputError, match="failed a batch .not a request"):
        run(settings(teacher), tmp_path, queue)
    assert not queue.known and queue.counts == {"sent": 5, "returned": 5}


def test_a_full_account_is_waited_for_with_patience(tmp_path):
    with start_teacher(tmp_path / "log", options=["--limit-batch-lines", "8", "--batch-delay-s", "0.2"]) as url:
        synthesis = settings(url, batch_size=8)
        both = synthesis.model_copy(update={"endpoints": [synthesis.endpoints[0]] * 2})
        queue = FileQueue(tmp_path, 24, "full")
        run(both, tmp_path, queue)
        assert times_served(url, "full", 24) == [1] * 24 and queue.counts["returned"] > 0
        with pytest.raises(InputError, match="failed a batch .the limit of lines.*smaller synthesis.batch_size"):
            run(settings(url, batch_size=9, retry={"patience_s": 0.1}), tmp_path, FileQueue(tmp_path, 33))
    assert delivered(tmp_path) == list(range(24))


def test_stop_while_polling_leaves_the_batch_to_the_next_run(tmp_path):
    with start_teacher(tmp_path / "log", options=["--batch-delay-s", "2"]) as url:
        queue = FileQueue(tmp_path, 30, "stop")
        runner = run(settings(url), tmp_path, queue, lambda runner: "in_progress" in runner.read_states()[0].reason)
        assert not queue.known and runner.read_states()[0].in_flight == 20
        again = FileQueue(tmp_path, 30, "stop")
        runner = run(settings(url), tmp_path, again)
        assert runner.attempts == again.counts["sent"] == 10
        assert times_served(url, "stop", 30) == [1] * 30 and stats(url)["calls"]["create ok"] == 2
    assert delivered(tmp_path) == list(range(30))


def test_a_batch_whose_server_forgot_it_is_asked_again(tmp_path):
    with start_teacher(tmp_path / "log", options=["--batch-delay-s", "9"]) as url:
        run(settings(url), tmp_path, FileQueue(tmp_path, 5), lambda runner: "0 of 5" in runner.read_states()[0].reason)
    port = url.split(":")[-1].removesuffix("/v1")
    with start_teacher(tmp_path / "log", options=["--port", port]) as same:
        assert same == url
        queue = FileQueue(tmp_path, 5)
        run(settings(url), tmp_path, queue)
    assert queue.counts == {"lost": 5, "sent": 5, "reply": 5}


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


def test_a_proxy_that_answers_404_causes_no_second_batch(tmp_path):
    with start_teacher(tmp_path / "log", options=["--batch-delay-s", "9"]) as url:
        run(settings(url), tmp_path, FileQueue(tmp_path, 5), lambda runner: "0 of 5" in runner.read_states()[0].reason)
    port = int(url.split(":")[-1].removesuffix("/v1"))
    with ThreadingHTTPServer(("127.0.0.1", port), _Nothing) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        queue = FileQueue(tmp_path, 5)
        with pytest.raises(InputError, match="refuses the batch .*404"):
            run(settings(url), tmp_path, queue)
        proxy.shutdown()
    assert queue.counts == {} and len(list(BatchLedger(SynthesisPaths(tmp_path).batches))) == 1


def test_a_batch_at_an_endpoint_that_is_gone(teacher, tmp_path):
    row = {"event": "creating", "part": "0", "model": "m0", "jobs": [0, 1]}
    ledger = SynthesisPaths(tmp_path).batches
    ledger.write_text(
        json.dumps({"event": "run", "run": "r"}) + "\n" + json.dumps(row | {"base_url": "http://127.0.0.1:1/v1"}) + "\n"
    )
    run(settings(teacher), tmp_path, FileQueue(tmp_path, 3, "gone"))  # the offline teacher of the earlier run has ended
    assert times_served(teacher, "gone", 3) == [1] * 3
    with JsonlLedger(ledger) as file:
        file.append(row | {"base_url": "https://paid.example/v1", "part": "9"})
    with pytest.raises(InputError, match="paid.example.*put it back"):
        run(settings(teacher), tmp_path, FileQueue(tmp_path, 3, "gone"))
    ledger.write_text('{"event": "created", "part": "7", "id": "x"}\n')
    with pytest.raises(InputError, match="no record of a batch"):
        run(settings(teacher), tmp_path, FileQueue(tmp_path, 3, "gone"))
