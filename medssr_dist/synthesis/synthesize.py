"""The synthesize step: requests until N questions are accepted, their replies journaled, judged and counted.

1. Every reply already in the journal is checked against the prompt that its request has now, and judged.
2. Missing ones are asked for (Dispatcher, or BatchRunner); each reply is in the journal before it is used.
3. questions.jsonl and rejected.jsonl grow in request order, and the vote may follow them; summary.json, the
   dataset card and the review sheet close the step.

A stop, an error or a kill at any moment loses no reply that was received: the same command goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from tqdm import tqdm

from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.run.stream import mark_end
from medssr_dist.synthesis.card import write_card
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.client.batch_runner import BatchRunner
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.progress import SynthesisProgress, SynthesisWork, summarize
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.request_queue import RequestQueue
from medssr_dist.synthesis.review import write_review

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage
    from medssr_dist.knowledge.retrieval import Entity

_TICK_S = 0.05
_SYNC_S = 0.25


@dataclass(frozen=True)
class Inputs:
    """What questions are made from, and checked against.

    `retrieve` gives an entity name's passages, `passage_text` the text of one by id: both must be quick.
    `open_endpoints` makes the config's endpoints ready for as long as requests are sent.
    """

    seeds: list[Question]
    benchmarks: dict[str, list[Question]]
    entities: list[Entity]
    retrieve: Callable[[str], list[Passage]]
    passage_text: Callable[[str], str]
    open_endpoints: Callable[[list[Endpoint]], AbstractContextManager[list[Endpoint]]] = nullcontext


def synthesize(
    config: Config,
    folder: Path,
    inputs: Inputs,
    commit: str,
    should_stop: Callable[[], bool] = lambda: False,
    hold: Callable[[int], bool] = lambda accepted: False,
) -> dict:
    """Run the step in `folder`, or go on with it (paper section 3.1).

    Args:
        folder: gets journal.jsonl, questions.jsonl, rejected.jsonl, summary.json, README.md and review.csv.
        commit: code commit, for the provenance.
        should_stop: polled; once true, requests on the wire are awaited and journaled, and the step ends.
        hold: see RequestQueue; the vote lags behind.

    Returns:
        The summary (see `summary.summarize`).

    Raises:
        InputError: unusable seeds, endpoints, or a folder that belongs to other settings; too many refused replies.
        Stopped: `should_stop` said so; the same call goes on later.
    """
    check_inputs(config, inputs.seeds, inputs.entities)
    with ExitStack() as stack:
        work = _open(config, folder, inputs, commit, should_stop, hold, stack)
        started = time.time()
        if not work.queue.is_finished:
            with inputs.open_endpoints(config.synthesis.endpoints) as endpoints:
                uvloop.run(_ask(config.synthesis, endpoints, folder, work))
        if should_stop():
            raise Stopped(f"synthesis stopped with {len(work.journal):,} replies kept; run the same command to go on")
        return _close(config, folder, inputs, work, started)


def check_inputs(config: Config, seeds: list[Question], entities: list[Entity]) -> None:
    """Raise InputError where there are too few seeds, or no entity to inject."""
    if len(seeds) < 2:
        raise InputError(
            f"synthesis.seeds hold {len(seeds)} usable question(s); a prompt takes two, so give at least 2"
        )
    if config.synthesis.alpha > 0 and not entities:
        raise InputError(
            f"synthesis.alpha = {config.synthesis.alpha:g} needs rare-disease entities, but there are none; "
            "check knowledge.corpus, or set synthesis.alpha=0"
        )


def _open(
    config: Config, folder: Path, inputs: Inputs, commit: str, should_stop, hold, stack: ExitStack
) -> SynthesisWork:
    """Open the journal, check and judge what it holds."""
    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    plan = RequestPlan(config, inputs.seeds, inputs.entities, inputs.retrieve, commit)
    spending = Spending(synthesis)
    journal = stack.enter_context(_open_journal(SynthesisPaths(folder).journal, plan, spending))
    reservations = ReservationLedger(SynthesisPaths(folder).reserved_cost, synthesis.most_candidates)
    stack.callback(reservations.close)
    spending.count_lost(reservations.total, tries=0)
    items = [question for questions in inputs.benchmarks.values() for question in questions]
    screen = Screen(synthesis.checks, random_seed, inputs.seeds, items, inputs.passage_text)
    writer = QuestionWriter(folder, journal, screen, synthesis.accepted, synthesis.max_reject_share)
    stack.callback(writer.close)
    queue = RequestQueue(synthesis, plan, journal, reservations, spending, writer.judged, should_stop, hold)
    return SynthesisWork(journal, reservations, spending, writer, queue)


def _open_journal(path: Path, plan: RequestPlan, spending: Spending) -> Journal:
    """The journal, its replies counted. Raises InputError where a reply answers another prompt."""

    def check(entry: JournalEntry) -> None:
        index = entry.provenance.index
        if entry.provenance.prompt_hash != plan.request(index).provenance.prompt_hash:
            raise InputError(
                f"{path} holds replies to other prompts (first at request {index}): seeds, knowledge, "
                "synthesis or random_seed changed since; put them back, or use another --run-dir"
            )
        spending.count(entry.model, entry.prompt_tokens, entry.completion_tokens)
        bar.update()

    with tqdm(desc="synthesize: checking the journal", unit="reply", disable=not path.exists()) as bar:
        return Journal(path, check)


async def _ask(synthesis: Synthesis, endpoints: list[Endpoint], folder: Path, work: SynthesisWork) -> None:
    """Ask until the queue is finished; judge, sync and show beside it."""
    if synthesis.transport == "batch":
        runner = BatchRunner(synthesis, endpoints, folder)
    else:
        runner = Dispatcher(synthesis, endpoints)
    with SynthesisProgress(folder, synthesis, runner, work.queue, work.spending, work.writer) as progress:
        asking = asyncio.create_task(runner.run(work.queue))
        beside = asyncio.create_task(_judge_and_show(work, progress, runner))
        await asyncio.wait({asking, beside}, return_when=asyncio.FIRST_COMPLETED)
        runner.stop()  # where judging failed: what is on the wire still reaches the journal
        results = await asyncio.gather(asking, _end(beside), return_exceptions=True)
        work.journal.sync()
        work.attempts = runner.attempts
        for error in filter(lambda result: isinstance(result, BaseException), results):
            raise error


async def _judge_and_show(work: SynthesisWork, progress: SynthesisProgress, runner: Dispatcher | BatchRunner) -> None:
    """Judge what has come, in a thread beside the requests; sync the journal and show the state now and then."""
    synced = time.monotonic()
    while True:
        # With enough accepted, retries that wait are not needed; batches that are out are paid for, and awaited.
        if work.queue.stopping or (work.queue.enough and isinstance(runner, Dispatcher)):
            runner.stop()
        judged = await asyncio.to_thread(_judge, work)
        work.queue.wake.set()
        if time.monotonic() - synced > _SYNC_S:
            await asyncio.to_thread(work.journal.sync)
            synced = time.monotonic()
        progress.update()
        if not judged:
            await asyncio.sleep(_TICK_S)


def _judge(work: SynthesisWork) -> int:
    """Judge what has come and is on disk: who follows questions.jsonl sees none that a power cut takes back."""
    come = work.journal.first_missing
    if come > work.writer.judged.done:
        work.journal.sync()
    return work.writer.advance(come)


async def _end(task: asyncio.Task) -> None:
    """Cancel an endless task; an error that it ended with is raised."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return


def _close(config: Config, folder: Path, inputs: Inputs, work: SynthesisWork, started: float) -> dict:
    while work.writer.advance():
        pass
    paths = SynthesisPaths(folder)
    mark_end(paths.questions, work.writer.judged.accepted)
    summary = summarize(config, work, started) | {"checked_against": list(inputs.benchmarks)}
    path = paths.summary
    if summary["requests_sent"] == 0 and path.exists() and read_json(path)["accepted"] == summary["accepted"]:
        return read_json(path)  # nothing was done: the summary of the run that did the work stands
    write_review(
        paths.questions,
        paths.review,
        config.synthesis.review_sample,
        config.runtime.random_seed,
        inputs.passage_text,
    )
    write_card(folder, config, summary)
    write_json(path, summary)
    return summary


def goes_on(synthesis: Synthesis, folder: Path) -> bool:
    """Whether a finished step has more to do, because the count, the cap or the budget was raised since."""
    summary = read_json(SynthesisPaths(folder).summary)
    if summary["accepted"] >= synthesis.accepted:
        return False
    if summary["stopped_by"] == "budget":
        before, now = summary["budget"], synthesis.budget.model_dump()
        return any(before[name] and (not now[name] or now[name] > before[name]) for name in before)
    return synthesis.most_candidates > summary["requested"]
