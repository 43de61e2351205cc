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
from medssr_dist.data.answers import chat_prompt
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference.leases import Refused, contiguous
from medssr_dist.inference.pool import EnginePool, Outcome, Result
from medssr_dist.inference.requests import Completion, Request
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.early_stopping import certain, needed
from medssr_dist.voting.labels import decide, quarantine
from medssr_dist.voting.ledger import VoteLedger, seeds_of
from medssr_dist.voting.tally import Tally


@dataclass(slots=True, eq=False)
class Ballot:
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


class Ballots:
    """The pool's `Work` for a vote.

    Args:
        feed: the questions in order, from position `ledger.decided` on.
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
        self._open: dict[int, Ballot] = {}  # by position, in order, from `ledger.decided` on
        self._by_key: dict[str, Ballot] = {}
        self._asking: list[int] = []  # heap of positions with something to ask
        self._to_ask = 0  # samples of present waves that no engine has been given
        self._unwanted: list[str] = []
        self._position = ledger.decided
        self._spare_from = 0  # all votes of the questions before it are taken or out
        self.votes = 0  # taken by this process

    @property
    def ended(self) -> bool:
        return self._feed.ended and not self._open

    @property
    def left(self) -> int | None:
        return self._to_ask if self._feed.ended else None

    def next(self, most: int) -> Request | None:
        ballot = self._first_asking() or self._begin_next()
        if ballot is None:
            return None
        request = self._request(ballot, min(most, ballot.to_ask))
        ballot.to_ask -= request.n
        self._to_ask -= request.n
        return request

    def _first_asking(self) -> Ballot | None:
        while self._asking:
            ballot = self._open.get(self._asking[0])
            if ballot and ballot.to_ask:
                return ballot
            heapq.heappop(self._asking)
        return None

    def spare(self, most: int) -> Request | None:
        no_more = self._feed.ended or len(self._open) >= self._voting.window
        if self._voting.adaptive == "never" or not no_more or self._hold():
            return None
        self._spare_from = max(self._spare_from, self._ledger.decided)
        while self._spare_from < self._position:
            ballot = self._open[self._spare_from]
            if ballot.label is None and len(ballot.seeds) + len(ballot.out) < self._voting.samples:
                return self._request(ballot, most)
            self._spare_from += 1
        return None

    def unwanted(self) -> list[str]:
        keys, self._unwanted = self._unwanted, []
        return keys

    def take(self, outcomes: list[Outcome]) -> None:
        """Store votes, decide what can be decided, and write the labels that are next in order."""
        touched: dict[str, Ballot] = {}
        votes: dict[int, list[Vote]] = {}
        for outcome in outcomes:
            ballot = self._by_key.get(outcome.key)
            if ballot is None or ballot.label or (isinstance(outcome, Result) and outcome.sample.seed in ballot.seeds):
                continue
            touched[outcome.key] = ballot
            if isinstance(outcome, Refused):
                ballot.label = quarantine(
                    ballot.question, ballot.tally, self._voting, outcome.reason, **self._summed(ballot)
                )
            else:
                vote = self._vote(ballot.question, outcome.sample)
                ballot.take(vote)
                votes.setdefault(ballot.position, []).append(vote)
        for position, found in votes.items():
            self.votes += len(found)
            self._ledger.add_votes(position, found)
        for ballot in touched.values():
            self._go_on(ballot)
        self._write_labels()

    def _begin_next(self) -> Ballot | None:
        """The next question that needs votes; those whose votes are all on disk get their label on the way."""
        while len(self._open) < self._voting.window and not self._hold():
            question = self._feed.next()
            if question is None:
                return None
            ballot = self._open_ballot(question)
            self._go_on(ballot)
            if ballot.to_ask:
                return ballot
            self._write_labels()
        return None

    def _open_ballot(self, question: Question) -> Ballot:
        if question.id in self._by_key:
            raise InputError(f"question {question.id} comes twice ({question.stem[:60]!r}); drop one of the two")
        wanted = seeds_of(question.id, self._config.runtime.random_seed, self._voting.samples)
        ballot = Ballot(self._position, question, wanted, Tally(), set())
        for seed, vote in self._ledger.known(self._position, question).items():
            if seed in wanted:
                ballot.take(vote)
        ballot.prompt = chat_prompt(self._tokenizer, question)
        self._open[self._position] = self._by_key[question.id] = ballot
        self._position += 1
        return ballot

    def _go_on(self, ballot: Ballot) -> None:
        """Decide the ballot, or have its next wave asked once the present one is in."""
        letters = tuple(ballot.question.options)
        if ballot.label is None and certain(ballot.tally, letters, self._voting):
            ballot.label = decide(ballot.question, ballot.tally, self._voting, **self._summed(ballot))
        if ballot.label:
            self._to_ask -= ballot.to_ask
            ballot.to_ask = 0
            if ballot.out:
                self._unwanted.append(ballot.question.id)
        elif not ballot.out and not ballot.to_ask:
            ballot.to_ask = self._wave(ballot, letters)
            self._to_ask += ballot.to_ask
            heapq.heappush(self._asking, ballot.position)

    def _wave(self, ballot: Ballot, letters: tuple[str, ...]) -> int:
        """How many votes to ask for next: the fewest that may settle it, or all where half a window waits for it."""
        if self._position - ballot.position > self._voting.window // 2:
            return self._voting.samples - len(ballot.seeds)
        return needed(ballot.tally, letters, self._voting)

    def _summed(self, ballot: Ballot) -> dict:
        return {
            "tokens": ballot.tokens,
            "truncated": ballot.truncated,
            "policy": self._ledger.policy,
            "sampling": self._ledger.sampling,
        }

    def _write_labels(self) -> None:
        while (ballot := self._open.get(self._ledger.decided)) and ballot.label:
            self._ledger.add_label(ballot.position, ballot.label)
            del self._open[ballot.position], self._by_key[ballot.question.id]

    def _request(self, ballot: Ballot, most: int) -> Request:
        """Samples of the lowest seeds not asked yet, `most` at most and without a gap between them."""
        free = [seed for seed in ballot.wanted if seed not in ballot.seeds and seed not in ballot.out]
        first, count = contiguous(free)[0]
        count = min(count, most)
        ballot.out.update(range(first, first + count))
        return Request(
            key=ballot.question.id,
            prompt=ballot.prompt,
            options=ballot.question.options,
            n=count,
            seed=first,
            temperature=self._voting.temperature,
            top_p=self._voting.top_p,
            max_tokens=self._voting.max_tokens,
            length=ballot.tokens / len(ballot.seeds) if ballot.seeds else 0.0,
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


def take_votes(
    pool: EnginePool, ballots: Ballots, ledger: VoteLedger, bar: tqdm, should_stop: Callable[[], bool]
) -> None:
    """Ask, store, decide, until every ballot has its label."""
    for outcomes in pool.run(ballots):
        ballots.take(outcomes)
        ledger.commit()
        bar.update(ledger.decided - bar.n)
        bar.set_postfix(kept=ledger.kept, votes=ballots.votes, refresh=False)
        if should_stop():
            raise Stopped("voting stopped; the same command takes the votes that are missing")
    ledger.commit()
    bar.update(ledger.decided - bar.n)
