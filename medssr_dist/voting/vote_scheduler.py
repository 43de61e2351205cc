"""Which samples are still needed: the source of work that voting gives the engine pool.

A question gets votes in waves of the fewest after which its outcome could be certain (`bound.needed`), so that with
`voting.adaptive` none is drawn in vain; with `never` its wave is all K. Questions are taken in order, `voting.window`
of them at most ahead of the first without a label, and get their labels in that order: what the trainer sees does not
depend on which engine was quick. A question that half a window waits for asks all its votes at once, and near the end
engines that would idle draw votes that may turn out to be needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from tqdm import tqdm

from medssr_dist.config.schema import Config
from medssr_dist.data.answers import render_prompt
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference.leases import QuarantinedRequest, split_into_runs
from medssr_dist.inference.pool import EnginePool, PoolOutcome
from medssr_dist.inference.requests import Completion, PoolResult, SampleRequest
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.early_stopping import count_needed_votes, is_certain
from medssr_dist.voting.labels import label_question, quarantine_question
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.tally import Tally


@dataclass(slots=True, eq=False)
class QuestionState:
    """A question on its way to a label."""

    position: int
    question: Question
    wanted: range  # seeds of its K votes
    tally: Tally
    seeds: set[int]  # of votes taken
    tokens: int = 0
    truncated: int = 0
    out: set[int] = field(default_factory=set)  # seeds asked and not yet back
    to_ask: int = 0  # of the present wave
    prompt: str = ""
    label: Label | None = None

    def take(self, vote: Vote) -> None:
        self.out.discard(vote.seed)
        self.seeds.add(vote.seed)
        self.tally = self.tally.add(vote.answer)
        self.tokens += vote.tokens
        self.truncated += vote.truncated


class VoteScheduler:
    """The pool's `Work` for a vote.

    Args:
        feed: the questions in order, from position `ledger.num_labels` on.
        ledger: holds what is known of them, and gets votes and labels.
        hold: asked before a question is begun; True = not now, the trainer lags behind.
    """

    def __init__(
        self,
        config: Config,
        feed: QuestionFeed,
        ledger: VoteLedger,
        tokenizer,
        hold: Callable[[], bool] = lambda: False,
    ):
        self._config, self._voting = config, config.voting
        self._feed, self._ledger, self._tokenizer, self._hold = feed, ledger, tokenizer, hold
        self._open: dict[int, QuestionState] = {}  # by position, in order, from `ledger.num_labels` on
        self._by_key: dict[str, QuestionState] = {}
        self._asking: list[int] = []  # heap of positions with something to ask
        self._to_ask = 0  # samples of present waves that no engine has been given
        self._unwanted: list[str] = []
        self._position = ledger.num_labels
        self._spare_from = 0  # all votes of the questions before it are taken or out
        self.num_votes = 0  # taken by this process

    @property
    def is_finished(self) -> bool:
        return self._feed.ended and not self._open

    @property
    def remaining(self) -> int | None:
        return self._to_ask if self._feed.ended else None

    def next_request(self, max_samples: int) -> SampleRequest | None:
        state = self._first_asking() or self._begin_next()
        if state is None:
            return None
        request = self._request(state, min(max_samples, state.to_ask))
        state.to_ask -= request.n
        self._to_ask -= request.n
        return request

    def _first_asking(self) -> QuestionState | None:
        while self._asking:
            state = self._open.get(self._asking[0])
            if state and state.to_ask:
                return state
            heapq.heappop(self._asking)
        return None

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        no_more = self._feed.ended or len(self._open) >= self._voting.window
        if self._voting.adaptive == "never" or not no_more or self._hold():
            return None
        self._spare_from = max(self._spare_from, self._ledger.num_labels)
        while self._spare_from < self._position:
            state = self._open[self._spare_from]
            if state.label is None and len(state.seeds) + len(state.out) < self._voting.samples:
                return self._request(state, max_samples)
            self._spare_from += 1
        return None

    def pop_unwanted_keys(self) -> list[str]:
        keys, self._unwanted = self._unwanted, []
        return keys

    def add_outcomes(self, outcomes: list[PoolOutcome]) -> None:
        """Store votes, decide what can be decided, and write the labels that are next in order."""
        touched: dict[str, QuestionState] = {}
        votes: dict[int, list[Vote]] = {}
        for outcome in outcomes:
            state = self._by_key.get(outcome.key)
            if state is None or state.label or (isinstance(outcome, PoolResult) and outcome.sample.seed in state.seeds):
                continue
            touched[outcome.key] = state
            if isinstance(outcome, QuarantinedRequest):
                state.label = quarantine_question(
                    state.question,
                    state.tally,
                    self._voting,
                    outcome.reason,
                    **self._summed(state),
                )
            else:
                vote = self._vote(state.question, outcome.sample)
                state.take(vote)
                votes.setdefault(state.position, []).append(vote)
        for position, found in votes.items():
            self.num_votes += len(found)
            self._ledger.add_votes(position, found)
        for state in touched.values():
            self._go_on(state)
        self._write_labels()

    def _begin_next(self) -> QuestionState | None:
        """The next question that needs votes; those whose votes are all on disk get their label on the way."""
        while len(self._open) < self._voting.window and not self._hold():
            question = self._feed.next()
            if question is None:
                return None
            state = self._open_question(question)
            self._go_on(state)
            if state.to_ask:
                return state
            self._write_labels()
        return None

    def _open_question(self, question: Question) -> QuestionState:
        if question.id in self._by_key:
            raise InputError(f"question {question.id} comes twice ({question.stem[:60]!r}); drop one of the two")
        wanted = derive_seeds(question.id, self._config.runtime.random_seed, self._voting.samples)
        state = QuestionState(self._position, question, wanted, Tally(), set())
        for seed, vote in self._ledger.known_votes(self._position, question).items():
            if seed in wanted:
                state.take(vote)
        state.prompt = render_prompt(self._tokenizer, question)
        self._open[self._position] = self._by_key[question.id] = state
        self._position += 1
        return state

    def _go_on(self, state: QuestionState) -> None:
        """Decide the state, or have its next wave asked once the present one is in."""
        letters = tuple(state.question.options)
        if state.label is None and is_certain(state.tally, letters, self._voting):
            state.label = label_question(state.question, state.tally, self._voting, **self._summed(state))
        if state.label:
            self._to_ask -= state.to_ask
            state.to_ask = 0
            if state.out:
                self._unwanted.append(state.question.id)
        elif not state.out and not state.to_ask:
            state.to_ask = self._wave(state, letters)
            self._to_ask += state.to_ask
            heapq.heappush(self._asking, state.position)

    def _wave(self, state: QuestionState, letters: tuple[str, ...]) -> int:
        """How many votes to ask for next: the fewest that may settle it, or all where half a window waits for it."""
        if self._position - state.position > self._voting.window // 2:
            return self._voting.samples - len(state.seeds)
        return count_needed_votes(state.tally, letters, self._voting)

    def _summed(self, state: QuestionState) -> dict:
        return {
            "tokens": state.tokens,
            "truncated": state.truncated,
            "policy": self._ledger.policy,
            "sampling": self._ledger.sampling,
        }

    def _write_labels(self) -> None:
        while (state := self._open.get(self._ledger.num_labels)) and state.label:
            self._ledger.add_label(state.position, state.label)
            del self._open[state.position], self._by_key[state.question.id]

    def _request(self, state: QuestionState, most: int) -> SampleRequest:
        """Samples of the lowest seeds not asked yet, `most` at most and without a gap between them."""
        free = [seed for seed in state.wanted if seed not in state.seeds and seed not in state.out]
        first, count = split_into_runs(free)[0]
        count = min(count, most)
        state.out.update(range(first, first + count))
        return SampleRequest(
            key=state.question.id,
            prompt=state.prompt,
            options=state.question.options,
            n=count,
            seed=first,
            temperature=self._voting.temperature,
            top_p=self._voting.top_p,
            max_tokens=self._voting.max_tokens,
            expected_tokens=state.tokens / len(state.seeds) if state.seeds else 0.0,
        )

    def _vote(self, question: Question, sample: Completion) -> Vote:
        return Vote(
            question_id=question.id,
            policy=self._ledger.policy,
            sampling=self._ledger.sampling,
            seed=sample.seed,
            answer=sample.answer,
            method=sample.method,
            text=sample.text,
            tokens=sample.tokens,
            truncated=sample.truncated,
        )


def collect_votes(
    pool: EnginePool, scheduler: VoteScheduler, ledger: VoteLedger, bar: tqdm, should_stop: Callable[[], bool]
) -> None:
    """Ask, store, decide, until every state has its label."""
    for outcomes in pool.run(scheduler):
        scheduler.add_outcomes(outcomes)
        ledger.commit()
        bar.update(ledger.num_labels - bar.n)
        bar.set_postfix(kept=ledger.num_kept, votes=scheduler.num_votes, refresh=False)
        if should_stop():
            raise Stopped("voting stopped; the same command takes the votes that are missing")
    ledger.commit()
    bar.update(ledger.num_labels - bar.n)
