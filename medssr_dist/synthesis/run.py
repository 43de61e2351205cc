"""The synthesize step: config.synthesis.questions requests, their replies journaled, parsed and counted.

1. Every reply already in the journal is checked against the prompt that its request has now.
2. The missing ones are asked for, `concurrency` at once; each reply is on disk before it is used.
3. questions.jsonl and rejected.jsonl grow in request order; summary.json closes the step.

A stop, an error or a kill at any moment loses no reply that was received: the same command goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from medssr_dist.config import Config, Endpoint
from medssr_dist.errors import InputError, Stopped
from medssr_dist.jsonl import read_json, write_json
from medssr_dist.records import Provenance, Question
from medssr_dist.synthesis.client import ChatClient, RequestFailed
from medssr_dist.synthesis.draws import draw
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.outputs import Outputs
from medssr_dist.synthesis.prompts import build_messages, prompt_hash
from medssr_dist.synthesis.teacher import start_teacher

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage
    from medssr_dist.knowledge.retrieval import Entity

OFFLINE_TEACHER = "offline-teacher"
_TICK_S = 0.2
_FEWEST_FAILURES = 3


@dataclass(frozen=True)
class Request:
    """One request: what is sent, and all that its question must be able to tell of it."""

    messages: list[dict[str, str]]
    provenance: Provenance


class Plan:
    """Request number -> request, by (random_seed, index) and the inputs alone."""

    def __init__(
        self,
        config: Config,
        seeds: list[Question],
        retrieve: Callable[[str], list[Passage]],
        entities: list[Entity],
        commit: str,
    ):
        self.requested = config.synthesis.questions
        self._config = config
        self._seeds = seeds
        self._entities = entities
        self._commit = commit
        self._passages = lru_cache(maxsize=None)(retrieve)

    def request(self, index: int) -> Request:
        """Build request `index`; passages are retrieved once an entity."""
        random_seed, synthesis = self._config.runtime.random_seed, self._config.synthesis
        drawn = draw(index, random_seed, synthesis.alpha, self._seeds, self._entities)
        entity = drawn.entity
        passages = self._passages(entity.name) if entity else []
        messages = build_messages(drawn.seeds, entity.name if entity else None, passages)
        provenance = Provenance(
            index=index,
            prompt_hash=prompt_hash(messages, synthesis.endpoint),
            seed_ids=tuple(seed.id for seed in drawn.seeds),
            rho=drawn.rho,
            entity=entity.name if entity else None,
            entity_id=entity.id if entity else None,
            passage_ids=tuple(passage.id for passage in passages),
            teacher=synthesis.endpoint.model,
            random_seed=random_seed,
            commit=self._commit,
        )
        return Request(messages, provenance)


def synthesize(
    config: Config,
    folder: Path,
    seeds: list[Question],
    retrieve: Callable[[str], list[Passage]],
    entities: list[Entity],
    commit: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict:
    """Run the step in `folder`, or go on with it (paper section 3.1).

    Args:
        folder: gets journal.jsonl, questions.jsonl, rejected.jsonl and summary.json.
        seeds: seed questions, at least 2.
        retrieve: entity name -> passages.
        entities: rare diseases to draw from; may be empty when alpha is 0.
        commit: code commit, for the provenance.
        should_stop: polled; once true, requests on the wire are awaited and journaled, and the step ends.

    Returns:
        The summary. `tokens` (of replies), `seconds`, `requests_sent` and `http_attempts` are of the call that did
        the work; everything else is of the whole folder. Shares are None where nothing was accepted.

    Raises:
        InputError: unusable seeds, endpoint, or a folder that belongs to other settings.
        Stopped: `should_stop` said so; the same call goes on later.
    """
    check_inputs(config, seeds, entities)
    started = time.monotonic()
    plan = Plan(config, seeds, retrieve, entities, commit)
    with Journal(folder / "journal.jsonl") as journal:
        missing = _check_journal(journal, plan)
        with closing(Outputs(folder, journal, plan.requested, (seed.id for seed in seeds))) as outputs:
            attempts = 0
            if missing:
                with _endpoint(config, folder) as endpoint:
                    attempts = asyncio.run(_Asking(endpoint, plan, journal, outputs, missing, should_stop).run())
        summary = _summarize(config, outputs, len(missing), attempts, time.monotonic() - started)
        return _write_summary(folder / "summary.json", summary)


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


def _check_journal(journal: Journal, plan: Plan) -> list[int]:
    """The request numbers without a reply. Raises InputError where a reply answers another prompt."""
    missing = [index for index in range(plan.requested) if index not in journal]
    present = [index for index in range(plan.requested) if index in journal]
    for index in tqdm(present, "synthesize: checking the journal", disable=not present):
        if journal.prompt_hash(index) != plan.request(index).provenance.prompt_hash:
            raise InputError(
                f"{journal.path} holds replies to other prompts (first at request {index}): seeds, knowledge, "
                "synthesis or random_seed changed since; put them back, or use another --run-dir"
            )
    return missing


@contextmanager
def _endpoint(config: Config, folder: Path) -> Iterator[Endpoint]:
    """The endpoint to ask; for 'offline-teacher' one that lives as long as the block."""
    endpoint = config.synthesis.endpoint
    if endpoint.base_url != OFFLINE_TEACHER:
        yield endpoint
        return
    with start_teacher(folder / "teacher.log", config.runtime.random_seed) as base_url:
        yield endpoint.model_copy(update={"base_url": base_url})


class _Asking:
    """Asks for the missing replies. Failed requests go to the end of the line; success resets their count."""

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        journal: Journal,
        outputs: Outputs,
        missing: list[int],
        should_stop: Callable[[], bool],
    ):
        self._endpoint = endpoint
        self._plan = plan
        self._journal = journal
        self._outputs = outputs
        self._line = deque(missing)
        self._should_stop = should_stop
        self._failures = 0
        self._stopping = False
        self._error: Exception | None = None

    async def run(self) -> int:
        """Ask until nothing is missing. Returns the number of HTTP requests that took."""
        missing, total = len(self._line), self._plan.requested
        async with ChatClient(self._endpoint) as self._client:
            with tqdm(total=total, initial=total - missing, desc="synthesize", unit="question") as self._bar:
                watch = asyncio.create_task(self._watch())
                workers = min(self._endpoint.concurrency, len(self._line))
                await asyncio.gather(*(self._work() for _ in range(workers)))
                watch.cancel()
                if self._error:
                    raise self._error
                self._tick()
        if self._stopping:
            raise Stopped(f"synthesis stopped with {len(self._journal)} replies kept; run the same command to go on")
        return self._client.attempts

    async def _work(self) -> None:
        """Ask request after request. An error stops all, after the requests on the wire are journaled."""
        try:
            while self._line and not self._stopping:
                await self._ask(self._line.popleft())
        except Exception as error:
            self._error = self._error or error
            self._stop()

    async def _ask(self, index: int) -> None:
        request = self._plan.request(index)
        try:
            reply = await self._client.complete(request.messages)
        except RequestFailed as failure:
            self._line.append(index)
            self._note_failure(failure)
            return
        self._journal.append(
            JournalEntry(
                provenance=request.provenance,
                reply=reply.text,
                model=reply.model,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
            )
        )
        self._failures = 0
        self._bar.update()

    def _note_failure(self, failure: RequestFailed) -> None:
        """Give up when as many requests failed in a row as can be in flight."""
        self._failures += 1
        limit = max(_FEWEST_FAILURES, min(self._endpoint.concurrency, len(self._line)))
        if self._failures >= limit and not self._stopping:
            raise InputError(
                f"endpoint {self._endpoint.base_url} keeps failing ({self._failures} requests in a row, each tried "
                f"{self._endpoint.retries + 1} times; last: {failure}); {len(self._journal)} replies are kept: run the "
                "same command again once it works"
            )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                if self._should_stop():
                    self._stop()
                self._tick()
            except Exception as error:
                self._error = self._error or error
                self._stop()
                return

    def _stop(self) -> None:
        self._stopping = True
        self._client.stop()

    def _tick(self) -> None:
        self._outputs.advance()
        self._bar.set_postfix(accepted=self._outputs.accepted, rejected=sum(self._outputs.rejected.values()))


def _summarize(config: Config, outputs: Outputs, sent: int, attempts: int, seconds: float) -> dict:
    return {
        "requested": outputs.done,
        "accepted": outputs.accepted,
        "rejected_by_reason": dict(sorted(outputs.rejected.items())),
        "alpha": {
            "asked": config.synthesis.alpha,
            "achieved_requests": outputs.rare / outputs.done,
            "achieved_accepted": outputs.accepted_rare / outputs.accepted if outputs.accepted else None,
        },
        "prompt_tokens": outputs.prompt_tokens,
        "completion_tokens": outputs.completion_tokens,
        "requests_sent": sent,
        "requests_replayed": outputs.done - sent,
        "http_attempts": attempts,
        "tokens": outputs.completion_tokens,
        "seconds": round(seconds, 2),
    }


def _write_summary(path: Path, summary: dict) -> dict:
    """Write the summary; where nothing was sent, the one of the run that did the work stands."""
    if summary["requests_sent"] == 0 and path.exists():
        earlier = read_json(path)
        if earlier["requested"] == summary["requested"]:
            return earlier
    write_json(path, summary)
    return summary
