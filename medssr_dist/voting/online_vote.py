"""Votes of the policy in training (`voting.online`): the vote of step 2, on other engines and with another policy.

Scheduler, early stopping and ledger are those of the vote, so that each vote is stored exactly once under the policy
version that gave it. Each vote after a training step has a folder of its own, with its questions, votes and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question, parse_record
from medssr_dist.inference.pool import PoolOutcome
from medssr_dist.inference.requests import CompletedRequest, PoolResult, SampleRequest
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote import VoteMethod
from medssr_dist.voting.vote_scheduler import VoteScheduler


class CompletionEngines(Protocol):
    """Engines that answer the requests of a vote."""

    def submit(self, request: SampleRequest) -> None:
        """Start a request."""

    def next_completed(self) -> CompletedRequest:
        """Wait for the next request that is finished."""


def vote_online(
    config: Config,
    folder: Path,
    policy: str,
    questions: Sequence[Question],
    prompts: PromptRenderer,
    engines: CompletionEngines,
) -> list[Label]:
    """Take the votes of a policy on `questions`; return their labels in order.

    Args:
        folder: where questions, votes and labels are stored; it must not hold those of another call.
        policy: version of the policy that the engines hold, a part of the key of each vote.
        prompts: makes the policy's prompts.
        engines: answer nothing else meanwhile.
    """
    paths = VotingPaths(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with JsonlLedger(paths.online_questions) as file:
        file.append(*(question.model_dump(mode="json") for question in questions))
    voting = config.voting.model_copy(update={"kept": 0, "window": max(config.voting.window, len(questions))})
    config = config.model_copy(update={"voting": voting})
    method = VoteMethod.from_config(config, prompts)
    with method.open_ledger(folder, policy) as ledger:
        scheduler = method.make_scheduler(QuestionFeed(paths.online_questions), ledger)
        _collect(scheduler, ledger, engines, voting.in_flight)
    rows = read_jsonl(paths.labels)
    return [parse_record(Label, row, f"{paths.labels} line {line}") for line, row in enumerate(rows, start=1)]


def _collect(scheduler: VoteScheduler, ledger: VoteLedger, engines: CompletionEngines, most: int) -> None:
    """Request votes and store them until every question has its label; at most `most` samples are in flight."""
    requests = samples = 0  # in flight
    while not scheduler.is_finished or requests:  # at the end, wait until the engines are free
        while samples < most and (request := scheduler.next_request(most - samples)):
            engines.submit(request)
            requests, samples = requests + 1, samples + request.n
        scheduler.pop_unwanted_keys()  # these samples end soon, and no other request waits for their place
        if requests:
            done = engines.next_completed()
            requests, samples = requests - 1, samples - len(done.samples)
            outcomes: list[PoolOutcome] = [PoolResult(done.key, sample) for sample in done.samples]
            scheduler.add_outcomes(outcomes)
            ledger.commit()
