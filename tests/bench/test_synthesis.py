"""`medssr bench synthesis`: its server, its meter, and a complete run on small sizes. No timings are asserted."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from medssr_dist.bench.synthesis import peers
from medssr_dist.bench.synthesis.local import draw_questions, measure_decontamination, measure_retrieval
from medssr_dist.bench.synthesis.peers import Measurement
from medssr_dist.bench.synthesis.reply_server import Replies, read_refused_share, run_reply_server
from medssr_dist.bench.synthesis.report import draw_synthesis_plot, format_synthesis_table
from medssr_dist.bench.synthesis.run import CellKey, SynthesisScale, compute_ratios, measure_synthesis
from medssr_dist.data.jsonl import read_json

TINY = SynthesisScale(
    rounds=1,
    warmup_s=0.5,
    seconds=0.5,
    memory_counts=(100, 300),
    rate_limit=200,
    goodput_warmup_s=0.5,
    goodput_s=0.5,
    benchmark_items=50,
    candidates=200,
    passages=500,
    entities=50,
)


def ask(url: str) -> dict:
    body = json.dumps({"model": "m", "messages": peers.make_messages()}).encode()
    with urllib.request.urlopen(f"{url}/chat/completions", data=body, timeout=10) as response:
        return json.loads(response.read())


def status(url: str) -> int:
    try:
        ask(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def stats(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=10) as response:
        return json.loads(response.read())


def test_replies_are_distinct_valid_questions_with_usage():
    replies = Replies()
    bodies = [json.loads(replies.next().split(b"\r\n\r\n", 1)[1]) for _ in range(3_000)]
    found = [json.loads(body["choices"][0]["message"]["content"]) for body in bodies]
    assert len({question["question"] for question in found}) == 3_000
    assert all(len(set(question["options"].values())) == 4 for question in found)
    assert bodies[0]["usage"]["total_tokens"] == 790


def test_the_server_answers_waits_and_counts():
    with run_reply_server(latency_ms=100) as url:
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            assert all(body["choices"] for body in pool.map(ask, [url] * 8))
        assert time.perf_counter() - begun >= 0.1
        assert stats(url) == {"replies": 8, "refusals": 0}


def test_the_server_refuses_at_random_and_over_its_limit():
    with run_reply_server(refuse_share=0.3) as url, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(status, [url] * 300))
        assert read_refused_share(url) == round(found.count(429) / 300, 3)
        assert set(found) == {200, 429} and 40 < found.count(429) < 150
    with run_reply_server(rate_limit=10) as url, ThreadPoolExecutor(8) as pool:
        begun = time.perf_counter()
        found = list(pool.map(status, [url] * 200))
        assert 1 <= found.count(200) <= 10 * (time.perf_counter() - begun) + 2


def test_the_server_ends_with_the_process_that_started_it():
    code = (
        "from medssr_dist.bench.synthesis.reply_server import run_reply_server; import os\n"
        "with run_reply_server() as url: print(url, flush=True); os._exit(1)"
    )
    url = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            stats(url)
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server still runs")


def test_the_meter_counts_the_window_only(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(peers.time, "perf_counter", lambda: clock[0])
    meter = peers.Meter(warmup_s=1, seconds=2)
    clock[0] = 107.0  # the clock starts with the first request
    for begun, ended in ((107.0, 107.5), (108.49, 108.5), (108.97, 109.0), (109.48, 109.5), (109.9, 110.5)):
        clock[0] = begun
        assert not meter.over and meter.begin() == begun
        clock[0] = ended
        meter.end(begun)
    found = meter.result()
    assert meter.over and found.requests == 3
    assert found.requests_per_s == 1.5  # three from the last end of the warm-up (107.5) to the last in the window
    assert found.p50_ms == pytest.approx(20, abs=0.2) and found.p99_ms == pytest.approx(30, abs=0.2)
    assert found.peak_mb > 1


def test_a_meter_by_count_is_over_after_so_many():
    meter = peers.Meter(0, 0, count=3)
    for _ in range(3):
        assert not meter.over
        meter.end(meter.begin())
    assert meter.over and meter.result().requests == 3


def test_the_prompts_are_of_one_size():
    from medssr_dist.bench.synthesis import ours
    from medssr_dist.synthesis.request_plan import RequestPlan

    theirs = sum(len(message["content"]) for message in peers.make_messages())
    plan = RequestPlan(
        ours._make_config("http://127.0.0.1:1/v1", 1, 10),
        ours._make_seeds(),
        ours._make_entities(),
        ours._find_passages,
        "c",
    )
    mine = [sum(len(message["content"]) for message in plan.build_request(index).messages) for index in range(10)]
    assert theirs == peers.PROMPT_CHARS
    assert all(0.9 * theirs < chars < 1.1 * theirs for chars in mine), mine


def test_ratios_are_within_a_round_at_the_worse_concurrency():
    rates = {
        ("ours", 0, 64): (700, 90),
        ("bare_uvloop", 0, 64): (1000, 100),
        ("openai", 0, 64): (100, 10),
        ("ours", 0, 512): (800, 80),
        ("bare_uvloop", 0, 512): (1000, 100),
        ("openai", 0, 512): (0, 0),
        ("ours", 200, 512): (2432, 2432),
        ("bare_uvloop", 200, 512): (2560, 2560),
        ("openai", 200, 512): (50, 0),
    }
    matrix = {
        CellKey(*key): [Measurement(9, rate, None, None, None, 1.0) for rate in rounds] for key, rounds in rates.items()
    }
    found = compute_ratios(matrix, ["ours", "bare_uvloop", "openai"])
    assert found.ratio_to_bare_loop == 0.8  # 64: median of 0.7 and 0.9; 512: 0.8
    assert found.ratio_to_async_openai == 8.0  # 64: median of 7 and 9; 512: it never replied in time
    assert found.share_of_ideal_512x200ms == found.share_of_bare_512x200ms == 0.95
    assert found.ratio_to_distilabel is None and found.ratio_judged_to_bare_loop is None


def test_decontamination_and_retrieval_are_of_real_work():
    assert measure_decontamination(50, 300) > 0  # raises unless it finds what was leaked
    assert measure_retrieval(300, 20) > 0
    assert len({item.id for item in draw_questions(200, 1)}) == 200


def test_a_run_has_all_figures_with_a_table_and_a_plot(tmp_path, repo):
    found = measure_synthesis(tmp_path, TINY, cells=((20, 8),), contestants=("ours", "bare_uvloop"), quick=True)
    figures = json.loads(json.dumps(found.to_json()))
    for key in ("ratio_to_bare_loop", "share_of_ideal_512x200ms", "share_of_bare_512x200ms"):
        assert 0 < figures[key] < 3, (key, figures[key])
    for key in ("peak_mb_10k", "peak_mb_1m", "decontamination_per_s", "retrieval_10k_entities_s"):
        assert figures[key] > 0
    assert 0 < figures["goodput_share_at_30pct_429"] < 1.5
    assert figures["goodput"]["random_429"]["refused_share"] > 0.2
    assert figures["ratio_to_async_openai"] is None and figures["memory_requests"] == [100, 300]
    assert [(cell["contestant"], cell["latency_ms"]) for cell in figures["cells"]] == [
        ("ours", 20),
        ("bare_uvloop", 20),
    ]
    for cell in figures["cells"]:
        assert cell["p99_ms"] >= cell["p50_ms"] >= 20 and cell["peak_mb"] > 1 and cell["cpu_us_per_request"] > 0
    written = read_json(repo / "benchmarks" / "results" / "synthesis_cpu.json")
    assert list(figures) == [name for name in written if name not in ("date", "commit", "machine", "versions")]
    assert figures["cells"][0].keys() == written["cells"][0].keys()
    assert [cell["rounds"][0].keys() for cell in figures["cells"]] == [
        next(cell for cell in written["cells"] if cell["contestant"] == name)["rounds"][0].keys()
        for name in ("ours", "bare_uvloop")
    ]
    text = format_synthesis_table(found)
    assert "requests/s to a bare loop" in text and "--quick" in text and "ours, 8 x 20 ms" in text
    draw_synthesis_plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png"]  # journals are gone


@pytest.mark.parametrize("name", ["bare", "openai"])
def test_the_other_contestants_run(name):
    pytest.importorskip("openai")
    with run_reply_server() as url:
        command = [
            sys.executable,
            peers.__file__,
            name,
            url,
            "--concurrency",
            "4",
            "--warmup-s",
            "0.5",
            "--seconds",
            "1",
        ]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["requests"] > 0 and found["p99_ms"] >= found["p50_ms"] > 0
