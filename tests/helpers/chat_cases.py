"""A chat server whose behaviour a test defines, and jobs for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from config_builder import make_config

from medssr_dist.synthesis.client import backoff, dispatcher, endpoint, rate_limits
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.client.job import ChatJob


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    random.seed(3)
    monkeypatch.setattr(backoff, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "BACKOFF_LAST_S", 0.1)
    monkeypatch.setattr(dispatcher, "DRAIN_S", 0.3)
    monkeypatch.setattr(dispatcher, "TICK_S", 0.05)
    monkeypatch.setattr(endpoint, "FIRST_CONTACT_S", 0.1)
    monkeypatch.setattr(rate_limits, "BREAKER_S", 0.05)
    monkeypatch.setattr(rate_limits, "FIRST_COOLDOWN_S", 0.05)
    monkeypatch.setattr(rate_limits, "FIRST_ROUND_TRIP_S", 0.02)


class Jobs:
    """A queue of `count` prompts "0", "1", ...; `when_done` is called at each outcome."""

    def __init__(self, count, tokens=100, when_done=None):
        self.wake = asyncio.Event()
        self.waiting = [
            ChatJob(n, [{"role": "user", "content": str(n)}], tokens, prompt_tokens=0) for n in reversed(range(count))
        ]
        self.outcomes, self.counts, self.when_done = {}, Counter(), when_done

    def next_job(self, probe=False):
        return self.waiting.pop() if self.waiting else None

    @property
    def is_finished(self):
        return not self.waiting

    def record_sent(self, job):
        self.counts["sent"] += 1

    def record_lost(self, job):
        self.counts["lost"] += 1

    def record_refused(self, job):
        self.counts["returned"] += 1

    def finish(self, job, outcome):
        assert job.index not in self.outcomes
        self.outcomes[job.index] = outcome
        if self.when_done:
            self.when_done(self)

    @property
    def replies(self):
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, Reply)]

    @property
    def given_up(self):
        return {index: outcome for index, outcome in self.outcomes.items() if isinstance(outcome, GaveUp)}

    def balanced(self):
        """Each try ended in exactly one way."""
        return self.counts["sent"] == self.counts["lost"] + self.counts["returned"] + len(self.replies)


class Server:
    """Answers with `behave(prompt, number of the request)`: a status, a response, or None for a normal reply."""

    def __init__(self, behave=lambda prompt, number: None, latency=0.0):
        self.behave, self.latency = behave, latency
        self.asked, self.replied, self.times = Counter(), Counter(), []

    async def handle(self, request):
        prompt = (await request.json())["messages"][0]["content"]
        self.asked[prompt] += 1
        self.times.append(time.monotonic())
        answer = self.behave(prompt, self.asked.total())
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, int):
            return web.json_response({"error": {"message": f"{prompt} is bad"}}, status=answer)
        if answer is not None:
            return answer
        await asyncio.sleep(self.latency)
        self.replied[prompt] += 1
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return web.json_response({"choices": [{"message": {"content": prompt}}], "usage": usage})


async def run(servers, jobs, retry=None, **fields):
    async with serving(*servers) as urls:
        dispatcher = make(urls, retry, **fields)
        await asyncio.wait_for(dispatcher.run(jobs), 15)
    return dispatcher


KEY = "sk-very-secret-0123456789"


@asynccontextmanager
async def serving(*servers):
    runners, urls = [], []
    for server in servers:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    yield urls
    await asyncio.gather(*(runner.cleanup() for runner in runners))


def make(urls, retry=None, **fields):
    endpoints = [{"base_url": url, "model": "m", "api_key": KEY, **fields} for url in urls]
    synthesis = make_config(synthesis={"endpoints": endpoints, "retry": retry or {}}).synthesis
    return Dispatcher(synthesis, synthesis.endpoints)
