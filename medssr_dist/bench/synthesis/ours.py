"""Our client, complete: plan, token count, budget, dispatcher, journal on disk with its syncs.

    python -m medssr_dist.bench.synthesis.ours URL FOLDER --concurrency 64 --warmup-s 2 --seconds 10

prints a Measurement as JSON, like `peers.py`. `--count N` sends N requests instead and measures all of them. `--judge`
adds the other work of `medssr synthesize`: every check on every reply, and questions.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import uvloop

from medssr_dist.bench.synthesis.peers import Measurement, Meter
from medssr_dist.bench.synthesis.reply_server import MODEL
from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question
from medssr_dist.knowledge.entities import Entity
from medssr_dist.knowledge.passages import Passage
from medssr_dist.run.demand import FixedDemand
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.request_queue import JudgedCount, RequestQueue

_MAX_PER_S = 20_000  # more than our client reaches: bounds the requests of a timed run
_TICK_S = 0.05
_SYNC_S = 0.25
_PASSAGE_CHARS = 390  # with three passages, two seeds and the instructions, a prompt has 3.8 KB
# Every reply of the server contains two of these words, so it counts as grounded.
_TEXT = ("Fatigue and hepatomegaly come first, then the kidneys fail. " * 9)[:_PASSAGE_CHARS]
_PASSAGES = [Passage(f"BENCH:{number}", f"Passage {number}", _TEXT, "bench") for number in range(3)]


class MeteredQueue(RequestQueue):
    """A queue that times each request from its first attempt to its reply, and ends with the meter's window."""

    def __init__(self, meter: Meter, *args):
        super().__init__(*args, should_stop=lambda: meter.over)
        self._meter = meter
        self._begun: dict[int, float] = {}

    def record_sent(self, job: ChatJob) -> None:
        if job.index not in self._begun:
            self._begun[job.index] = self._meter.begin()
        super().record_sent(job)

    def finish(self, job: ChatJob, outcome) -> None:
        super().finish(job, outcome)
        self._meter.end(self._begun.pop(job.index))


def measure_our_client(url: str, folder: Path, concurrency: int, meter: Meter, limit: int, judge: bool) -> Measurement:
    """Send requests until the meter's window ends, at most `limit`; with `judge` also check the replies."""
    config = _make_config(url, concurrency, limit)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal.jsonl"))
        reservations = ReservationLedger(folder / "exposure.bin", limit)
        stack.callback(reservations.close)
        judged, advance = _start_judging(config, folder, journal, stack) if judge else _skip_judging(journal)
        plan = RequestPlan(config, _make_seeds(), _make_entities(), _find_passages, commit="bench")
        spending = Spending(config.synthesis)
        dispatcher = Dispatcher(config.synthesis, config.synthesis.endpoints)
        demand = FixedDemand(config.synthesis.accepted)
        queue = MeteredQueue(meter, config.synthesis, plan, journal, reservations, spending, demand, judged)
        uvloop.run(_send(dispatcher, queue, journal, advance, meter))
    return replace(meter.result(), attempts=dispatcher.attempts)


async def _send(
    dispatcher: Dispatcher, queue: RequestQueue, journal: Journal, advance: Callable[[], int], meter: Meter
) -> None:
    background = asyncio.create_task(_judge_and_sync(queue, journal, advance))
    end = asyncio.create_task(_stop_when_closed(dispatcher, meter))
    try:
        await dispatcher.run(queue)
    finally:
        background.cancel()
        end.cancel()


async def _stop_when_closed(dispatcher: Dispatcher, meter: Meter) -> None:
    """Stop the dispatcher when the window ends, without waiting for refused requests that are to be retried."""
    while not meter.closed:
        await asyncio.sleep(_TICK_S)
    dispatcher.stop()


async def _judge_and_sync(queue: RequestQueue, journal: Journal, advance: Callable[[], int]) -> None:
    """Judge replies and sync the journal in threads, as the synthesize step does."""
    synced = time.monotonic()
    while True:
        judged = await asyncio.to_thread(advance)
        queue.wake.set()
        if time.monotonic() - synced > _SYNC_S:
            await asyncio.to_thread(journal.sync)
            synced = time.monotonic()
        if not judged:
            await asyncio.sleep(_TICK_S)


def _skip_judging(journal: Journal) -> tuple[JudgedCount, Callable[[], int]]:
    """Count replies as judged when they arrive, and none as accepted, so that the queue does not end by itself."""
    judged = JudgedCount()

    def advance() -> int:
        judged.total = journal.first_missing
        return 0

    return judged, advance


def _start_judging(
    config: Config, folder: Path, journal: Journal, stack: ExitStack
) -> tuple[JudgedCount, Callable[[], int]]:
    synthesis = config.synthesis
    screen = Screen(synthesis.checks, config.runtime.random_seed, _make_seeds(), (), lambda _: _TEXT)
    writer = QuestionWriter(folder, journal, screen, FixedDemand(synthesis.accepted), synthesis.max_reject_share)
    stack.callback(writer.close)
    return writer.judged, writer.advance


def _make_config(url: str, concurrency: int, limit: int) -> Config:
    endpoint = {"base_url": url, "model": MODEL, "concurrency": concurrency}
    return Config.model_validate(
        {
            "policy": {"model": "none"},
            "training": {"stage1": {"enabled": False}, "stage2": {"enabled": False}},
            "synthesis": {
                "accepted": limit,
                "candidates": limit,
                "alpha": 1.0,
                "seeds": ["hpo:seeds"],
                "endpoints": [endpoint],
                "max_reject_share": 1.0,
            },
        }
    )


def _make_seeds() -> list[Question]:
    """Return 200 seed questions of about 250 characters each."""
    rng = random.Random(1)
    stems = [" ".join(f"finding{rng.randrange(999)}" for _ in range(15)) for _ in range(200)]
    options = ["first answer", "second answer", "third answer", "fourth answer"]
    return [Question.make(f"A patient has {stem}. Why?", options, source="bench") for stem in stems]


def _make_entities() -> list[Entity]:
    return [Entity(f"BENCH:{number}", f"Disease of number {number}") for number in range(1000)]


def _find_passages(_entity: str) -> list[Passage]:
    return _PASSAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--warmup-s", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--count", type=int, default=0, help="measure this many requests, instead of a time")
    parser.add_argument("--judge", action="store_true", help="also check every reply")
    args = parser.parse_args()
    meter = Meter(args.warmup_s, args.seconds, args.count)
    limit = args.count or int(_MAX_PER_S * (args.warmup_s + args.seconds))
    found = measure_our_client(args.url, args.folder, args.concurrency, meter, limit, args.judge)
    print(json.dumps(found.to_json()))


if __name__ == "__main__":
    main()
