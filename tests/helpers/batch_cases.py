"""Requests, settings and outcomes for the tests of the batch transport."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter

import pytest
from config_builder import make_config

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Question, hash_content
from medssr_dist.synthesis.client import backoff
from medssr_dist.synthesis.client.batch_runner import BatchRunner
from medssr_dist.synthesis.client.chat_client import Reply
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.prompts import build_messages

OTHER_SEED = Question.make("What drug treats gout?", ["Colchicine", "Aspirin", "Heparin", "Insulin"], source="t")


def messages(salt, index):
    stem = f"A {20 + index}-year-old man has sign {salt} {index}. What is the most likely diagnosis?"
    seed = Question.make(stem, [f"Disease {index} {letter}" for letter in "ABCD"], source="t")
    return build_messages((seed, OTHER_SEED), None, [])


class FileQueue:
    """Gives `count` jobs and writes each outcome to a file, like the journal: a job in the file is not given again."""

    def __init__(self, folder, count, salt="", at_once=10**9):
        self.wake = asyncio.Event()
        self.count, self.salt, self.at_once = count, salt, at_once
        self.path = folder / "outcomes.jsonl"
        self.known = {row["index"] for row in read_jsonl(self.path)} if self.path.exists() else set()
        self.in_flight, self.cursor, self.most_in_flight = {}, 0, 0
        self.counts = Counter()

    def next_job(self):
        while self.cursor in self.known or self.cursor in self.in_flight:
            self.cursor += 1
        if self.cursor >= self.count or len(self.in_flight) >= self.at_once:
            return None
        return self._give(self.cursor)

    def resume_job(self, index):
        return None if index in self.known else self._give(index)

    def _give(self, index):
        assert index not in self.in_flight and index not in self.known
        self.in_flight[index] = ChatJob(index, messages(self.salt, index), 100, 50)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return self.in_flight[index]

    @property
    def is_finished(self):
        return len(self.known) == self.count

    def record_sent(self, job):
        self.counts["sent"] += 1

    def record_refused(self, job):
        self.counts["returned"] += 1

    def record_lost(self, job):
        self.counts["lost"] += 1

    def finish(self, job, outcome):
        assert self.in_flight.pop(job.index) is job
        row = {"index": job.index}
        if isinstance(outcome, Reply):
            row |= {"text": outcome.text, "model": outcome.endpoint.model}
        else:
            row |= {"gave_up": outcome.reason, "detail": outcome.detail}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.known.add(job.index)
        self.counts["reply" if isinstance(outcome, Reply) else outcome.reason] += 1
        self.wake.set()


def settings(url, batch_size=20, retry=None, urls=(), **endpoint):
    endpoints = [{"base_url": each, "model": f"m{n}", **endpoint} for n, each in enumerate((url, *urls))]
    return make_config(
        synthesis={
            "endpoints": endpoints,
            "transport": "batch",
            "batch_size": batch_size,
            "poll_s": 0.02,
            "retry": {"patience_s": 20} | (retry or {}),
        }
    ).synthesis


def run(synthesis, folder, queue, stop_when=None):
    """Run to the end, or until `stop_when(runner)`. Return the runner."""

    async def go():
        runner = BatchRunner(synthesis, synthesis.endpoints, folder)
        asking = asyncio.create_task(runner.run(queue))
        while stop_when and not asking.done() and not stop_when(runner):
            await asyncio.sleep(0.005)
        if stop_when:
            runner.stop()
        await asyncio.wait_for(asking, 30)
        return runner

    return asyncio.run(go())


def delivered(folder):
    return sorted(row["index"] for row in read_jsonl(folder / "outcomes.jsonl"))


def stats(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=5) as response:
        return json.load(response)


def times_served(url, salt, count):
    """Return how often each request was served completely."""
    replies = stats(url)["replies"]
    return [replies.get(hash_content(messages(salt, index)), 0) for index in range(count)]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(backoff, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "BACKOFF_LAST_S", 0.1)
