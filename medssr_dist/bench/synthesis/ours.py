"""Our client as a contestant, whole: plan, token count, budget, dispatcher, journal on disk with its syncs.

    python -m medssr_dist.bench.synthesis.ours URL FOLDER --concurrency 64 --warmup-s 2 --seconds 10

prints what `peers.py` prints. `--count N` asks N requests instead and measures over all of them. `--judge` adds what
`medssr synthesize` does beside the client: every check on every reply, and questions.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

from medssr_dist.bench.synthesis.peers import Meter
from medssr_dist.bench.synthesis.reply_server import MODEL
from medssr_dist.config.schema import Config
from medssr_dist.data.records import Question
from medssr_dist.knowledge.passages import Passage
from medssr_dist.knowledge.retrieval import Entity
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.client.job import ChatJob
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.request_queue import JudgedCount, RequestQueue

_MOST_PER_S = 20_000  # no client of ours is faster: bounds the requests of a timed run
_TICK_S = 0.05
_SYNC_S = 0.25
_PASSAGE_CHARS = 390  # three, two seeds and the instructions make a prompt of 2.5 KB
# Every reply of the server holds two of these words, so it counts as grounded.
_TEXT = ("Fatigue and hepatomegaly come first, then the kidneys fail. " * 9)[:_PASSAGE_CHARS]
_PASSAGES = [Passage(f"BENCH:{number}", f"Passage {number}", _TEXT, "bench") for number in range(3)]


class MeteredQueue(RequestQueue):
    """A queue whose requests are timed from the first try to the reply; it ends when the meter is over."""

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


def measure_our_client(url: str, folder: Path, concurrency: int, meter: Meter, most: int, judge: bool) -> dict:
    """Ask until the meter is over, or `most` requests; returns the meter's result and the tries it took."""
    config = _config(url, concurrency, most)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / "journal.jsonl"))
        reservations = ReservationLedger(folder / "exposure.bin", most)
        stack.callback(reservations.close)
        judged, advance = _judging(config, folder, journal, stack) if judge else _no_judging(journal)
        plan = RequestPlan(config, _seeds(), _entities(), _passages, commit="bench")
        spending = Spending(config.synthesis)
        dispatcher = Dispatcher(config.synthesis, config.synthesis.endpoints)
        queue = MeteredQueue(meter, config.synthesis, plan, journal, reservations, spending, judged)
        uvloop.run(_ask(dispatcher, queue, journal, advance, meter))
    return meter.result() | {"attempts": dispatcher.attempts}


async def _ask(
    dispatcher: Dispatcher, queue: RequestQueue, journal: Journal, advance: Callable[[], int], meter: Meter
) -> None:
    beside = asyncio.create_task(_beside(queue, journal, advance))
    end = asyncio.create_task(_stop_when_closed(dispatcher, meter))
    try:
        await dispatcher.run(queue)
    finally:
        beside.cancel()
        end.cancel()


async def _stop_when_closed(dispatcher: Dispatcher, meter: Meter) -> None:
    """Refused requests that wait for their next try are not waited for."""
    while not meter.closed:
        await asyncio.sleep(_TICK_S)
    dispatcher.stop()


async def _beside(queue: RequestQueue, journal: Journal, advance: Callable[[], int]) -> None:
    """Judge and sync as the synthesize step does, in threads."""
    synced = time.monotonic()
    while True:
        judged = await asyncio.to_thread(advance)
        queue.wake.set()
        if time.monotonic() - synced > _SYNC_S:
            await asyncio.to_thread(journal.sync)
            synced = time.monotonic()
        if not judged:
            await asyncio.sleep(_TICK_S)


def _no_judging(journal: Journal) -> tuple[JudgedCount, Callable[[], int]]:
    """Replies count as judged as soon as they are there, none as accepted, so that asking never ends by itself."""
    judged = JudgedCount()

    def advance() -> int:
        judged.total = journal.first_missing
        return 0

    return judged, advance


def _judging(config: Config, folder: Path, journal: Journal, stack: ExitStack) -> tuple[JudgedCount, Callable[[], int]]:
    synthesis = config.synthesis
    screen = Screen(synthesis.checks, config.runtime.random_seed, _seeds(), (), lambda _: _TEXT)
    writer = QuestionWriter(folder, journal, screen, synthesis.accepted, synthesis.max_reject_share)
    stack.callback(writer.close)
    return writer.judged, writer.advance


def _config(url: str, concurrency: int, most: int) -> Config:
    endpoint = {"base_url": url, "model": MODEL, "concurrency": concurrency}
    return Config.model_validate(
        {
            "policy": {"model": "none"},
            "training": {"stage1": {"enabled": False}, "stage2": {"enabled": False}},
            "synthesis": {
                "accepted": most,
                "candidates": most,
                "alpha": 1.0,
                "seeds": ["hpo:seeds"],
                "endpoints": [endpoint],
                "max_reject_share": 1.0,
            },
        }
    )


def _seeds() -> list[Question]:
    """200 seed questions of about 250 characters each."""
    rng = random.Random(1)
    stems = [" ".join(f"finding{rng.randrange(999)}" for _ in range(15)) for _ in range(200)]
    options = ["first answer", "second answer", "third answer", "fourth answer"]
    return [Question.make(f"A patient has {stem}. Why?", options, source="bench") for stem in stems]


def _entities() -> list[Entity]:
    return [Entity(f"BENCH:{number}", f"Disease of number {number}") for number in range(1000)]


def _passages(_entity: str) -> list[Passage]:
    return _PASSAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--warmup-s", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--count", type=int, default=0, help="requests in all, instead of a time")
    parser.add_argument("--judge", action="store_true", help="also check every reply")
    args = parser.parse_args()
    meter = Meter(args.warmup_s, args.seconds, args.count)
    most = args.count or int(_MOST_PER_S * (args.warmup_s + args.seconds))
    print(json.dumps(measure_our_client(args.url, args.folder, args.concurrency, meter, most, args.judge)))


if __name__ == "__main__":
    main()
