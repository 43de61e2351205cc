"""What becomes of jobs and endpoints when requests are refused: for one prompt, for a while, or for good."""

import asyncio
import random
import time

import pytest
from aiohttp import web
from chat_cases import (
    Jobs,
    Server,
    make,
    quick,  # noqa: F401 - a fixture of every test here
    run,
    serving,
)

from medssr_dist.errors import InputError


def refuse(message, status=400, **fields):
    return web.json_response({"error": {"message": message, **fields}}, status=status)


def is_bad(prompt):
    return int(prompt) % 6 == 1


@pytest.mark.parametrize(
    ("status", "words"), [(403, "the input was flagged"), (400, "no"), (422, "no"), (403, "denied")]
)
@pytest.mark.parametrize("latency", [0.0, 0.05])
async def test_refused_prompts_are_given_up_and_nothing_else(status, words, latency):
    server = Server(lambda prompt, _: refuse(words, status) if is_bad(prompt) else None, latency)
    jobs = Jobs(60)
    await run([server], jobs, concurrency=16)
    assert sorted(jobs.given_up) == [n for n in range(60) if is_bad(str(n))]
    assert {outcome.reason for outcome in jobs.given_up.values()} == {"refused_by_api"}
    assert len(jobs.replies) == 50 and jobs.balanced() and set(server.replied.values()) == {1}


async def test_refused_prompts_at_the_end_are_given_up_too():
    server, jobs = Server(lambda prompt, _: refuse("no") if int(prompt) >= 8 else None), Jobs(10)
    await run([server], jobs, retry={"tries": 3}, concurrency=1)
    assert sorted(jobs.given_up) == [8, 9] and len(jobs.replies) == 8
    assert server.asked["9"] <= 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: refuse("Your credit balance is too low"), "no credit or quota left"),
        (lambda: refuse("gone", code="insufficient_quota", status=429), "no credit or quota left"),
        (lambda: refuse("API key expired, renew it"), "refuses the key"),
        (lambda: refuse("key expired", status=401), "refuses the key"),
        (lambda: web.json_response({"error": {"message": "no", "code": 402}}), "no credit or quota left"),
    ],
)
async def test_an_account_that_fails_midway_gives_nothing_up(answer, words):
    server, jobs = Server(lambda _, number: answer() if number > 6 else None), Jobs(60)
    with pytest.raises(InputError, match=f"{words} .*same command resumes"):
        await run([server], jobs, concurrency=4)
    assert len(jobs.replies) == 6 and not jobs.given_up and jobs.balanced() and jobs.counts["lost"] == 0
    assert server.asked.total() < 25


@pytest.mark.parametrize("status", [400, 403, 413, 422])
async def test_refusing_everything_midway_pauses_and_gives_nothing_up(status):
    server, jobs = Server(lambda _, number: refuse("nope", status) if number > 20 else None), Jobs(200)
    async with serving(server) as urls:
        dispatcher = make(urls, {"patience_s": 0.8}, concurrency=8)
        with pytest.raises(InputError, match=f"no endpoint has replied for patience_s.*HTTP {status}: nope"):
            await asyncio.wait_for(dispatcher.run(jobs), 20)
        (state,) = dispatcher.read_states()
    assert len(jobs.replies) == 20 and not jobs.given_up and jobs.balanced()
    assert state.in_words == "paused after failures" and server.asked.total() < 60  # no flood of requests


async def test_a_while_in_which_everything_is_refused_costs_nothing():
    began = []

    def behave(prompt, number):
        if number == 30:
            began.append(time.monotonic())
        return refuse("nope") if began and time.monotonic() - began[0] < 0.5 else None

    server, jobs = Server(behave), Jobs(120)
    await run([server], jobs, concurrency=8)
    assert len(jobs.replies) == 120 and not jobs.given_up and set(server.replied.values()) == {1}


async def test_prompts_refused_during_an_outage_are_asked_again():
    began = []

    def behave(prompt, number):
        if number == 30:
            began.append(time.monotonic())
        if not began or time.monotonic() - began[0] > 0.5:
            return None
        return refuse("gateway is confused") if number % 3 else web.Response(status=502)

    server, jobs = Server(behave), Jobs(120)
    await run([server], jobs, retry={"tries": 3}, concurrency=8)
    assert len(jobs.replies) == 120 and not jobs.given_up


async def test_load_told_by_413_and_498_gives_nothing_up():
    rng = random.Random(5)

    def behave(prompt, number):
        answers = (
            lambda: web.Response(status=498),
            lambda: refuse("tokens per minute", 413, code="rate_limit_exceeded"),
        )
        return rng.choice(answers)() if rng.random() < 0.3 else None

    server, jobs = Server(behave), Jobs(80)
    await run([server], jobs, retry={"tries": 2}, concurrency=8)
    assert len(jobs.replies) == 80 and jobs.counts["lost"] == 0


async def test_words_that_name_the_key_for_one_prompt_end_nothing():
    server = Server(lambda prompt, _: refuse("your text names an invalid api key") if prompt == "7" else None)
    jobs = Jobs(30)
    await run([server], jobs, retry={"tries": 3}, concurrency=2)
    assert list(jobs.given_up) == [7] and len(jobs.replies) == 29


async def test_a_refusing_endpoint_leaves_its_jobs_to_the_other():
    picky, good = Server(lambda _, number: refuse("nope") if number > 5 else None), Server(latency=0.01)
    jobs = Jobs(100)
    await run([picky, good], jobs, concurrency=4)
    assert len(jobs.replies) == 100 and not jobs.given_up


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("maximum context length is 2048 tokens", "lower synthesis.max_tokens or knowledge.top_k"),
        ("max_tokens must be at most 512", "set synthesis.max_tokens to what it allows"),
        ("response_format is not supported", "set json_schema: false"),
        ("temperature: only 1 is allowed", "set synthesis.temperature"),
        ("blocked by the content filter", "content filter of the account"),
        ("nope", "check model = 'm', api_key"),
    ],
)
async def test_first_refusals_end_with_the_words_and_the_fix(message, advice):
    server, jobs = Server(lambda *_: refuse(message)), Jobs(100)
    with pytest.raises(InputError, match=f"refuses every request .*{message}.*{advice}"):
        await run([server], jobs, concurrency=4)
    assert not jobs.outcomes and server.asked.total() < 14


async def test_many_refusals_before_the_first_reply_end_nothing():
    server = Server(lambda prompt, _: refuse("no") if int(prompt) in range(3, 10) else None, latency=0.3)
    jobs = Jobs(40)
    await run([server], jobs, concurrency=16)
    assert len(jobs.replies) == 33 and sorted(jobs.given_up) == list(range(3, 10))


async def test_a_server_that_says_retry_after_zero_is_not_hammered():
    server, jobs = Server(lambda *_: web.Response(status=429, headers={"Retry-After": "0"})), Jobs(4)
    async with serving(server) as urls:
        with pytest.raises(InputError, match="patience_s"):
            await asyncio.wait_for(make(urls, {"patience_s": 0.5}).run(jobs), 10)
    assert server.asked.total() < 120


async def test_waits_in_milliseconds_are_kept():
    refused, server = set(), None

    def behave(prompt, number):
        if prompt not in refused:
            refused.add(prompt)
            return web.Response(status=429, headers={"retry-after-ms": "700"})
        return None

    server, jobs = Server(behave), Jobs(4)
    await run([server], jobs)
    first, last = server.times[3], server.times[4]
    assert last - first >= 0.65 and len(jobs.replies) == 4


async def test_a_first_failure_is_told_at_once(caplog):
    server, jobs = Server(lambda _, number: web.Response(status=500, text="boom") if number < 8 else None), Jobs(5)
    await run([server], jobs)
    assert [record.getMessage() for record in caplog.records if "HTTP 500: boom" in record.getMessage()]
    assert len(jobs.replies) == 5
