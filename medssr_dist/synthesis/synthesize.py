"""The synthesize step: send requests until enough questions are accepted; journal, judge and count their replies.

1. Each reply in the journal is checked against the prompt that its request has now, and judged.
2. Missing replies are requested (by Dispatcher or BatchRunner). Each is written to the journal before it is used.
3. questions.jsonl and rejected.jsonl grow in the order of the requests, and the vote may follow them. The step ends
   with summary.json, the dataset card and the review sheet.

A stop, an error or a kill at any moment loses no reply that was received: the same command resumes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import Question
from medssr_dist.data.wilson import measure_share
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.demand import FixedDemand, QuestionDemand
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.run.stream import mark_end
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.card import write_card
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.client.batch_runner import BatchRunner
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.client.job import JobQueue
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.judge import VERDICT_FORMAT, QuestionJudge, open_verdicts
from medssr_dist.synthesis.progress import ProgressReporter
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.request_queue import RequestQueue
from medssr_dist.synthesis.review import write_review
from medssr_dist.synthesis.review_report import is_filled_in
from medssr_dist.synthesis.synthesis_summary import (
    AlphaShares,
    LetterBalance,
    ModelReplies,
    SynthesisSummary,
    read_synthesis_summary,
)
from medssr_dist.synthesis.verdict_queue import VerdictQueue

if TYPE_CHECKING:
    from medssr_dist.knowledge.entities import Entity
    from medssr_dist.knowledge.passages import Passage

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_SYNC_S = 0.25


@dataclass(frozen=True)
class SynthesisInputs:
    """What questions are made from and checked against.

    Attributes:
        seeds: the seed questions.
        benchmarks: the evaluation items by benchmark; no question may repeat one.
        entities: rare diseases.
        retrieve: returns the passages for the name of an entity; it must be fast.
        passage_text: returns the text of a passage by its id; it must be fast.
        open_endpoints: a context in which the given endpoints are ready; it yields them.
    """

    seeds: list[Question]
    benchmarks: dict[str, list[Question]]
    entities: list[Entity]
    retrieve: Callable[[str], list[Passage]]
    passage_text: Callable[[str], str]
    open_endpoints: Callable[[list[Endpoint]], AbstractContextManager[list[Endpoint]]] = nullcontext


@dataclass
class SynthesisWork:
    """The open files and the counts of the step."""

    plan: RequestPlan
    demand: QuestionDemand
    journal: Journal
    reservations: ReservationLedger
    spending: Spending
    writer: QuestionWriter
    queue: RequestQueue
    judge: QuestionJudge | None = None
    verdicts: VerdictQueue | None = None
    attempts: int = 0


def synthesize(
    config: Config,
    folder: Path,
    inputs: SynthesisInputs,
    commit: str,
    should_stop: Callable[[], bool] = lambda: False,
    should_hold: Callable[[int], bool] = lambda accepted: False,
    demand: QuestionDemand | None = None,
) -> SynthesisSummary:
    """Run or resume the step in `folder` (paper section 3.1).

    Args:
        folder: gets journal.jsonl, questions.jsonl, rejected.jsonl, summary.json, README.md and review.csv.
        commit: code commit, for the provenance.
        should_stop: polled; once true, the requests in flight are awaited and journaled, and the step ends.
        should_hold: back-pressure from the vote, see RequestQueue.
        demand: how many questions to write; None = `synthesis.accepted`.

    Returns:
        The summary, which is also written to summary.json.

    Raises:
        InputError: unusable seeds or endpoints, a folder of other settings, or too many rejected replies;
            also if none, or hardly any, became a question.
        Stopped: `should_stop` returned true; the same call resumes.
    """
    check_inputs(config, inputs.seeds, inputs.entities)
    with ExitStack() as stack:
        demand = demand or FixedDemand(config.synthesis.accepted)
        work = _open_work(config, folder, inputs, commit, demand, should_stop, should_hold, stack)
        started = time.time()
        if not work.queue.is_finished:
            with inputs.open_endpoints([*config.synthesis.endpoints, *config.synthesis.judge_endpoints]) as endpoints:
                uvloop.run(_send_requests(config.synthesis, endpoints, folder, work))
        if should_stop():
            raise Stopped(f"synthesis stopped with {len(work.journal):,} replies kept; the same command resumes")
        return _finish(config, folder, inputs, work, started)


def check_inputs(config: Config, seeds: list[Question], entities: list[Entity]) -> None:
    """Raise InputError if there are fewer than two seeds, or if alpha > 0 and there is no entity."""
    if len(seeds) < 2:
        raise InputError(
            f"synthesis.seeds hold {len(seeds)} usable question(s); a prompt takes two, so give at least 2"
        )
    if config.synthesis.alpha > 0 and not entities:
        raise InputError(
            f"synthesis.alpha = {config.synthesis.alpha:g} needs rare-disease entities, but there are none; "
            "check knowledge.corpora and knowledge.entities_file (`must_name_entity` too), or set synthesis.alpha=0"
        )


def _open_work(
    config: Config,
    folder: Path,
    inputs: SynthesisInputs,
    commit: str,
    demand: QuestionDemand,
    should_stop: Callable[[], bool],
    should_hold: Callable[[int], bool],
    stack: ExitStack,
) -> SynthesisWork:
    """Open the files; check and judge what the journal holds."""
    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    plan = RequestPlan(config, inputs.seeds, inputs.entities, inputs.retrieve, commit)
    spending = Spending(synthesis)
    journal = stack.enter_context(_open_journal(SynthesisPaths(folder).journal, plan, spending))
    reservations = ReservationLedger(SynthesisPaths(folder).reserved_cost, synthesis.most_candidates)
    stack.callback(reservations.close)
    spending.count_lost(reservations.total, tries=0)
    items = [question for questions in inputs.benchmarks.values() for question in questions]
    synonyms = {entity.name: entity.synonyms for entity in inputs.entities}
    screen = Screen(synthesis.checks, random_seed, inputs.seeds, items, inputs.passage_text, synonyms)
    judge = _open_judge(synthesis, folder, inputs.passage_text, spending, stack)
    writer = QuestionWriter(folder, journal, screen, demand, synthesis.max_reject_share, judge)
    stack.callback(writer.close)
    queue = RequestQueue(
        synthesis, plan, journal, reservations, spending, demand, writer.judged, should_stop, should_hold
    )
    verdicts = _open_verdict_queue(synthesis, folder, judge, spending, queue, should_stop, stack) if judge else None
    return SynthesisWork(plan, demand, journal, reservations, spending, writer, queue, judge, verdicts)


def _open_judge(
    synthesis: Synthesis, folder: Path, passage_text: Callable[[str], str], spending: Spending, stack: ExitStack
) -> QuestionJudge | None:
    if synthesis.judge is None:
        return None
    journal = stack.enter_context(open_verdicts(SynthesisPaths(folder), spending))
    return QuestionJudge(synthesis, journal, passage_text)


def _open_verdict_queue(
    synthesis: Synthesis,
    folder: Path,
    judge: QuestionJudge,
    spending: Spending,
    queue: RequestQueue,
    should_stop: Callable[[], bool],
    stack: ExitStack,
) -> VerdictQueue:
    assert synthesis.judge is not None
    reservations = ReservationLedger(SynthesisPaths(folder).reserved_verdict_cost, synthesis.most_candidates)
    stack.callback(reservations.close)
    spending.count_lost(reservations.total, tries=0)
    return VerdictQueue(synthesis.judge, judge, reservations, spending, lambda: queue.is_finished, should_stop)


def _open_journal(path: Path, plan: RequestPlan, spending: Spending) -> Journal:
    """Open the journal and count the cost of its replies. Raises InputError if a reply answers another prompt."""

    def check(entry: JournalEntry) -> None:
        index = entry.provenance.index
        if entry.provenance.prompt_hash != plan.build_request(index).provenance.prompt_hash:
            raise InputError(
                f"{path} holds replies to other prompts (first at request {index}): seeds, knowledge, "
                "synthesis or random_seed changed since; put them back, or use another --run-dir"
            )
        spending.count(entry.model, entry.prompt_tokens, entry.completion_tokens)
        bar.update()

    with ProgressBar(desc="synthesize: checking the journal", unit="reply", disable=not path.exists()) as bar:
        return Journal(path, check)


async def _send_requests(synthesis: Synthesis, endpoints: list[Endpoint], folder: Path, work: SynthesisWork) -> None:
    """Send requests until the queues are finished; judge, sync and show progress concurrently."""
    own, judging = endpoints[: len(synthesis.endpoints)], endpoints[len(synthesis.endpoints) :]
    batched = synthesis.transport == "batch"
    runners: list[Dispatcher | BatchRunner]
    runners = [BatchRunner(synthesis, own, folder) if batched else Dispatcher(synthesis, own)]
    queues: list[JobQueue] = [work.queue]
    if work.verdicts and synthesis.judge:
        limits = {"temperature": synthesis.judge.temperature, "max_tokens": synthesis.judge.max_tokens}
        runners.append(Dispatcher(synthesis.model_copy(update=limits), judging, VERDICT_FORMAT))
        queues.append(work.verdicts)
    with ProgressReporter(folder, work.demand, runners, work.queue, work.spending, work.writer) as progress:
        sending = [asyncio.create_task(runner.run(queue)) for runner, queue in zip(runners, queues, strict=True)]
        writing = asyncio.create_task(_judge_and_show(work, progress, runners))
        sent = asyncio.create_task(_wait_for_all(sending))
        await asyncio.wait({sent, writing}, return_when=asyncio.FIRST_COMPLETED)
        for runner in runners:
            runner.stop()  # if judging failed, replies in flight are still written to the journal
        results = await asyncio.gather(*sending, sent, _cancel(writing), return_exceptions=True)
        work.journal.sync()
        work.attempts = sum(runner.attempts for runner in runners)
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _judge_and_show(
    work: SynthesisWork, progress: ProgressReporter, runners: list[Dispatcher | BatchRunner]
) -> None:
    """Judge new replies in a thread; sync the journal and show the progress from time to time. Never returns."""
    synced = time.monotonic()
    while True:
        # With enough questions accepted, retries are dropped; batches in flight are paid for and awaited.
        for runner in runners:
            if work.queue.is_stopping or (work.queue.has_enough and isinstance(runner, Dispatcher)):
                runner.stop()
        judged = await asyncio.to_thread(_judge, work)
        work.queue.wake.set()
        if work.verdicts:
            work.verdicts.wake.set()
        if time.monotonic() - synced > _SYNC_S:
            await asyncio.to_thread(work.journal.sync)
            synced = time.monotonic()
        progress.update()
        if not judged:
            await asyncio.sleep(_TICK_S)


def _judge(work: SynthesisWork) -> int:
    """Judge replies that are on the disk, so that a power cut takes back no question that a reader has seen."""
    complete = work.journal.first_missing
    if complete > work.writer.judged.total:
        work.journal.sync()
        if work.judge:
            work.judge.journal.sync()
    return work.writer.advance(complete)


async def _wait_for_all(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all tasks, or until one of them fails; raises its error."""
    await asyncio.gather(*tasks)


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel an endless task. Raises the error that it ended with, if any."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return


def _finish(
    config: Config, folder: Path, inputs: SynthesisInputs, work: SynthesisWork, started: float
) -> SynthesisSummary:
    """Judge the rest; write the end mark, the review sheet, the card and the summary."""
    while work.writer.advance():
        pass
    work.writer.raise_if_hardly_accepted()
    paths = SynthesisPaths(folder)
    mark_end(paths.questions, work.writer.judged.accepted)
    summary = _summarize(config, inputs, work, started)
    if summary.requests_sent == 0 and paths.summary.exists():
        earlier = read_synthesis_summary(paths.summary)
        if earlier.accepted == summary.accepted:
            return earlier  # nothing was sent: keep the summary of the attempt that did the work
    if is_filled_in(paths.review):
        logger.warning("%s is filled in, so no new sample replaces it; move it away for one", paths.review)
    else:
        sample, random_seed = config.synthesis.review_sample, config.runtime.random_seed
        write_review(paths.questions, paths.review, sample, random_seed, inputs.passage_text)
    write_card(folder, config, summary)
    write_json(paths.summary, summary.model_dump(mode="json"))
    return summary


def _summarize(config: Config, inputs: SynthesisInputs, work: SynthesisWork, started: float) -> SynthesisSummary:
    writer, spending, queue = work.writer, work.spending, work.queue
    judged, accepted = writer.judged.total, writer.judged.accepted
    return SynthesisSummary(
        requested=judged,
        accepted=accepted,
        rejected_by_reason=dict(sorted(writer.rejected.items())),
        stopped_by=queue.stopped_by,
        budget=config.synthesis.budget,
        prompt_hash=work.plan.prompt.hash,
        surplus=len(work.journal) - judged,
        alpha=AlphaShares(
            asked=config.synthesis.alpha,
            requests=measure_share(writer.rare, judged),
            accepted=measure_share(writer.accepted_rare, accepted),
        ),
        letter_balance=LetterBalance(
            first_option=dict(sorted(writer.first_option.items())),
            entity_option=dict(sorted(writer.entity_option.items())),
        ),
        models=ModelReplies(asked=config.synthesis.models, answered=dict(writer.answered_by.most_common())),
        prompt_tokens=spending.prompt_tokens,
        completion_tokens=spending.completion_tokens,
        tokens=spending.completion_tokens,
        usd=round(spending.usd, 6),
        unpriced=tuple(sorted(spending.unpriced)),
        lost_tokens=spending.lost_tokens,
        requests_sent=queue.requests_sent,
        requests_replayed=len(work.journal) - queue.requests_sent,
        http_attempts=work.attempts,
        asked_again=queue.asked_again,
        lost=spending.lost,
        held_s=round(queue.held_s, 2),
        started=_format_time(started),
        ended=_format_time(time.time()),
        seconds=round(time.time() - started, 2),
        checked_against=list(inputs.benchmarks),
        judge=work.judge.summarize() if work.judge else None,
    )


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def has_more_to_do(synthesis: Synthesis, folder: Path, wanted: int) -> bool:
    """Return whether a finished step can bring more of the `wanted` questions: their number or a limit was raised."""
    summary = read_synthesis_summary(SynthesisPaths(folder).summary)
    if summary.accepted >= wanted:
        return False
    if summary.stopped_by == "budget":
        limits = (
            (summary.budget.usd, synthesis.budget.usd),
            (summary.budget.tokens, synthesis.budget.tokens),
        )
        return any(before and (not now or now > before) for before, now in limits)  # 0 = no limit
    return synthesis.most_candidates > summary.requested
