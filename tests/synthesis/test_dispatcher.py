import asyncio
import logging
import random
import socket
import time

import pytest
from aiohttp import web
from chat_cases import (
    KEY,
    Jobs,
    Server,
    make,
    quick,  # noqa: F401 - a fixture of every test here
    run,
    serving,
)

from medssr_dist.errors import InputError
from medssr_dist.synthesis.client.chat_client import GaveUp


def at_random(share, answer, seed=1):
    rng = random.Random(seed)
    return lambda prompt, number: answer(prompt, number) if rng.random() < share else None


async def hang():
    await asyncio.sleep(3)


async def test_every_job_is_asked_once_and_gets_its_own_reply():
    server, jobs = Server(), Jobs(200)
    dispatcher = await run([server], jobs)
    assert {index: outcome.text for index, outcome in jobs.outcomes.items()} == {n: str(n) for n in range(200)}
    assert set(server.asked.values()) == {1} and dispatcher.attempts == 200
    (state,) = dispatcher.read_states()
    assert (state.breaker, state.replies, state.in_flight, state.model) == ("closed", 200, 0, "m")
    assert KEY not in str(vars(state))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_share_of_failures_costs_no_second_reply(status):
    server, jobs = Server(at_random(0.3, lambda *_: status)), Jobs(150)
    dispatcher = await run([server], jobs, retry={"tries": 12})
    assert len(jobs.replies) == 150 and set(server.replied.values()) == {1} and jobs.balanced()
    assert jobs.counts["lost"] == 0 and dispatcher.attempts == jobs.counts["sent"] > 150


async def test_hangs_and_nonsense_are_counted_as_lost():
    def fault(_, number):
        return (hang, lambda: web.Response(body=b"{"), lambda: web.Response(text="<html>"))[number % 3]()

    server, jobs = Server(at_random(0.2, fault)), Jobs(60)
    await run([server], jobs, retry={"first_byte_s": 0.1, "tries": 12})
    assert len(jobs.replies) == 60 and jobs.balanced() and jobs.counts["lost"] > 3


async def test_refusals_by_load_do_not_count_against_a_job_failures_do():
    def behave(prompt, number):
        return {"3": 500, "4": 429 if number < 150 else None}.get(prompt)

    server, jobs = Server(behave), Jobs(150)
    await run([server], jobs, retry={"tries": 3})
    assert list(jobs.given_up) == [3]
    assert jobs.given_up[3].reason == "no_reply"
    assert "3 tries failed; the last: HTTP 500: 3 is bad" in jobs.given_up[3].detail
    assert 3 <= server.asked["3"] <= 20 and server.asked["4"] > 1


async def test_a_single_job_that_always_fails_at_the_end_is_given_up():
    server, jobs = Server(lambda prompt, _: 500 if prompt == "9" else None), Jobs(10)
    await run([server], jobs, retry={"tries": 4}, concurrency=1)
    assert jobs.given_up[9].reason == "no_reply" and len(jobs.replies) == 9


async def test_a_prompt_that_is_refused_twice_is_given_up():
    server, jobs = Server(lambda prompt, _: 400 if prompt == "7" else None), Jobs(20)
    await run([server], jobs, concurrency=1)
    assert jobs.given_up == {7: GaveUp("refused_by_api", "HTTP 400: 7 is bad")}
    assert server.asked["7"] == 2 and len(jobs.replies) == 19


async def test_a_wrong_model_name_ends_the_run_with_the_servers_words():
    wrong = {"error": {"message": f"no model m for {KEY}"}}
    server, jobs = Server(lambda *_: web.json_response(wrong, status=400)), Jobs(100)
    with pytest.raises(
        InputError, match=r"refuses every request \(HTTP 400: no model m for \*\*\*\); check model = 'm'"
    ):
        await run([server], jobs, concurrency=4)
    assert not jobs.outcomes and server.asked.total() < 12


@pytest.mark.parametrize("status", [404, 302, 200])
async def test_an_address_that_is_no_api_ends_the_run(status):
    server, jobs = Server(lambda *_: web.Response(status=status, text="<html>Welcome")), Jobs(100)
    with pytest.raises(InputError, match="is no OpenAI-compatible API .*check base_url"):
        await run([server], jobs, concurrency=4)
    assert not jobs.outcomes and server.asked.total() < 12


async def test_an_unreachable_endpoint_ends_the_run():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        jobs = Jobs(3)
        with pytest.raises(InputError, match=f"{url} cannot be reached .*start it, or check base_url"):
            await asyncio.wait_for(make([url]).run(jobs), 5)
    assert not jobs.outcomes and jobs.counts["lost"] == 0 and jobs.balanced()


async def test_a_key_that_expires_midway_stops_at_once(caplog):
    caplog.set_level(logging.DEBUG)
    server, jobs = Server(lambda _, number: 401 if number > 50 else None), Jobs(500)
    with pytest.raises(InputError, match="synthesis.endpoints can be used: .* refuses the key .*HTTP 401") as error:
        await run([server], jobs, concurrency=8)
    assert "Every reply so far is kept" in str(error.value) and KEY not in str(error.value) + caplog.text
    assert server.asked.total() <= 50 + 8 + 1  # no flood of requests
    assert len(jobs.replies) == 50 and not jobs.given_up and jobs.balanced()


async def test_a_refused_key_leaves_the_work_to_the_other_endpoint():
    good, bad, jobs = Server(), Server(lambda *_: 401), Jobs(100)
    dispatcher = await run([good, bad], jobs)
    assert len(jobs.replies) == 100
    assert [state.breaker for state in dispatcher.read_states()] == ["closed", "dead"]
    assert "refuses the key" in dispatcher.read_states()[1].reason


async def test_patience_ends_a_run_in_which_everything_is_refused():
    server, jobs = Server(lambda *_: 429), Jobs(100)
    reason = r"no endpoint has replied for patience_s = 0.6; .*HTTP 429.*same command resumes"
    async with serving(server) as urls:
        dispatcher = make(urls, {"patience_s": 0.6, "tries": 1})
        with pytest.raises(InputError, match=reason):
            await asyncio.wait_for(dispatcher.run(jobs), 5)
    assert not jobs.outcomes and jobs.balanced()
    (state,) = dispatcher.read_states()
    assert (state.breaker, state.limit) == ("open", 1) and "HTTP 429" in state.reason
    assert state.in_words == "paused after failures"


async def test_an_outage_uses_up_nobodys_tries():
    down = asyncio.Event()

    def behave(prompt, number):
        if number == 50:
            down.set()
            asyncio.get_running_loop().call_later(0.6, down.clear)
        return 500 if down.is_set() else None

    server, jobs = Server(behave), Jobs(150)
    dispatcher = await run([server], jobs, retry={"tries": 2}, concurrency=8)
    assert len(jobs.replies) == 150 and not jobs.given_up
    assert dispatcher.attempts < 250  # the circuit breaker paused the endpoint


async def test_work_goes_where_it_is_sustained():
    fast, slow, jobs = Server(latency=0.01), Server(latency=0.08), Jobs(400)
    await run([fast, slow], jobs, concurrency=4)
    assert fast.replied.total() > 3 * slow.replied.total() > 0
    assert len(jobs.replies) == 400


async def test_a_dying_endpoint_moves_its_work_and_nothing_is_lost():
    def dies(_, number):
        return web.Response(status=502) if number > 30 else None

    steady, dying, jobs = Server(latency=0.005), Server(dies, latency=0.005), Jobs(300)
    dispatcher = await run([steady, dying], jobs, concurrency=8)
    assert len(jobs.replies) == 300 and jobs.balanced()
    assert set((steady.replied + dying.replied).values()) == {1}
    assert dying.replied.total() == 30 and dispatcher.read_states()[1].breaker in ("open", "half-open")


@pytest.mark.parametrize("date_form", [False, True])
async def test_retry_after_is_kept_while_new_jobs_are_sent(date_form, monkeypatch):
    wait = {"Retry-After": "1"}
    if date_form:
        wait = {"Retry-After": "Sun, 06 Nov 1994 08:49:38 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    refused_once, times = [], []

    def behave(prompt, _):
        if prompt == "0":
            times.append(time.monotonic())
            if not refused_once:
                refused_once.append(True)
                return web.Response(status=429, headers=wait)
        return None

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6 * len(refused_once))  # the clock jumps
    server, jobs = Server(behave), Jobs(30)
    await run([server], jobs, concurrency=1)
    assert times[1] - times[0] >= 1.0 and len(server.times) == 31
    assert sum(times[0] < other < times[1] for other in server.times) > 1  # other jobs were sent meanwhile


async def test_hedging_uses_the_first_reply_and_counts_the_other_lost():
    slow, fast, jobs = Server(lambda *_: hang()), Server(), Jobs(6)
    dispatcher = await run([slow, fast], jobs, retry={"hedge_after_s": 0.05}, concurrency=3)
    assert len(jobs.replies) == 6 and jobs.balanced()
    assert jobs.counts["lost"] == dispatcher.hedges == slow.asked.total() >= 1
    assert {reply.endpoint.base_url for reply in jobs.replies} == {dispatcher.read_states()[1].name}
    assert [state.in_flight for state in dispatcher.read_states()] == [0, 0]


async def test_stop_delivers_replies_in_flight_and_drops_retries():
    def behave(prompt, _):
        return web.Response(status=429, headers={"Retry-After": "60"}) if prompt == "0" else None

    server = Server(behave, latency=0.1)
    jobs = Jobs(1000, when_done=lambda jobs: dispatcher.stop())
    async with serving(server) as urls:
        dispatcher = make(urls, concurrency=4)
        await asyncio.wait_for(dispatcher.run(jobs), 3)
    assert 1 <= len(jobs.replies) == server.replied.total() <= 4
    assert 0 not in jobs.outcomes and jobs.balanced()


async def test_an_error_of_the_queue_ends_the_run():
    def full(_):
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        await run([Server(latency=0.01)], Jobs(100, when_done=full), concurrency=4)


async def test_cancelling_counts_tries_in_flight_as_lost():
    jobs = Jobs(4)
    async with serving(Server(latency=2)) as urls:
        running = asyncio.create_task(make(urls).run(jobs))
        await asyncio.sleep(0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert jobs.counts == {"sent": 4, "lost": 4}


async def test_an_empty_queue_is_waited_for():
    jobs = Jobs(2)
    later, jobs.waiting = jobs.waiting, []
    closed = False
    type(jobs).is_finished, before = property(lambda self: closed and not self.waiting), type(jobs).is_finished
    try:
        async with serving(Server()) as urls:
            running = asyncio.create_task(make(urls).run(jobs))
            await asyncio.sleep(0.05)
            jobs.waiting, closed = later, True
            jobs.wake.set()
            await asyncio.wait_for(running, 2)
    finally:
        type(jobs).is_finished = before
    assert len(jobs.replies) == 2


async def test_limits_of_requests_and_tokens_are_kept_and_corrected():
    server, jobs = Server(), Jobs(40)
    await run([server], jobs, requests_per_minute=1200)  # 20/s; the first 20 may be sent at once
    assert server.times[-1] - server.times[0] > 0.9
    server, jobs = Server(), Jobs(40, tokens=1000)
    await run([server], jobs, tokens_per_minute=300_000)  # 5/s as estimated, 2,500/s as used
    assert len(jobs.replies) == 40 and server.times[-1] - server.times[0] < 4


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_concurrency_is_bounded(concurrency):
    inside = most = 0

    async def count():
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        await asyncio.sleep(0.01)
        inside -= 1

    await run([Server(lambda *_: count())], Jobs(40), concurrency=concurrency)
    assert most == concurrency
