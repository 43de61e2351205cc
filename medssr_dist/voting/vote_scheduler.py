"""Which samples are requested next: the source of requests that the vote gives to the engine pool.

The votes on a question are requested in waves. A wave has the fewest votes after which the decision could be certain
(`early_stopping.py`), so adaptive voting draws no unneeded vote; with `voting.adaptive=never` a wave has all K.

Questions are started in order, up to `voting.window` of them ahead of the first one without a label, and their labels
are written in this order: what the trainer sees does not depend on the speed of the engines. Once half a window waits
for a question, all its remaining votes are requested at once. Near the end of the run, engines that would idle draw
spare votes, which may turn out to be needed.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from medssr_dist.config.schema import Config
from medssr_dist.data.label_certificate import KindThresholds
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference.leases import QuarantinedRequest, split_into_runs
from medssr_dist.inference.pool import EnginePool, PoolOutcome
from medssr_dist.inference.requests import Completion, SampleRequest
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.voting.early_stopping import count_needed_votes, is_certain
from medssr_dist.voting.label_rule import NamedRule
from medssr_dist.voting.labels import label_by_rule, label_question, quarantine_question
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.question_forms import NO_PARAPHRASES, Paraphrases, QuestionForm, list_forms
from medssr_dist.voting.tally import Tally


@dataclass(slots=True, eq=False)
class QuestionState:
    """The votes on a question whose label is not written yet."""

    position: int
    question: Question
    all_seeds: range  # of its K votes
    forms: tuple[QuestionForm, ...]  # which its votes take in turn
    prompts: tuple[array[int], ...]  # token ids of each form
    tally: Tally = field(default_factory=Tally)
    taken: set[int] = field(default_factory=set)  # seeds of the votes taken
    in_flight: set[int] = field(default_factory=set)  # seeds that were requested and have not arrived
    to_request: int = 0  # votes of the present wave that have not been requested
    tokens: int = 0  # in the votes taken
    truncated: int = 0  # votes taken that were cut at the token limit
    votes: list[Vote] = field(default_factory=list)  # taken; only for a rule that weighs them
    label: Label | None = None

    def find_form(self, seed: int) -> int:
        """Return the number of the form that the vote with this seed takes."""
        return (seed - self.all_seeds.start) % len(self.forms)

    def add(self, vote: Vote, hold: bool) -> None:
        """Count a vote, and hold it if the rule needs it."""
        if hold:
            self.votes.append(vote)
        self.in_flight.discard(vote.seed)
        self.taken.add(vote.seed)
        self.tally = self.tally.add(vote.answer)
        self.tokens += vote.tokens
        self.truncated += vote.truncated


class _VoteFacts(TypedDict):
    """What a label says of its votes, whatever its outcome is."""

    tokens: int
    truncated: int
    policy: str
    sampling: str


class VoteScheduler:
    """The `RequestSource` of a vote.

    Args:
        feed: the questions in order, from position `ledger.num_labels` on.
        ledger: has the votes of earlier attempts, and gets the new votes and labels.
        should_wait: called before a question is started; True while the trainer lags behind.
        rule: how votes become a label; None = majority.
        paraphrases: further stems of the questions.
        thresholds: calibrated thresholds; None = `voting.threshold` for all questions.

    Attributes:
        num_votes: votes taken by this process.
        num_settled: votes on all questions so far that are taken, or not needed because the label is certain.
    """

    def __init__(
        self,
        config: Config,
        feed: QuestionFeed,
        ledger: VoteLedger,
        prompts: PromptRenderer,
        should_wait: Callable[[], bool] = lambda: False,
        *,
        rule: NamedRule | None = None,
        paraphrases: Paraphrases = NO_PARAPHRASES,
        thresholds: KindThresholds | None = None,
    ):
        self._config, self._voting = config, config.voting
        self._rule, self._paraphrases = rule, paraphrases
        self._voting_of = {
            rare: self._voting.model_copy(update={"threshold": thresholds.find(rare)}) if thresholds else self._voting
            for rare in (False, True)
        }
        self._feed, self._ledger, self._prompts, self._should_wait = feed, ledger, prompts, should_wait
        self._open: dict[int, QuestionState] = {}  # by position, ascending, from `ledger.num_labels` on
        self._by_id: dict[str, QuestionState] = {}
        self._requesting: list[int] = []  # heap of the positions with votes to request
        self._to_request = 0  # votes of the present waves that have not been requested
        self._unwanted: list[str] = []
        self._next_position = ledger.num_labels
        stage = config.training.stage1
        self._first_rollouts = stage.samples_per_prompt if stage.first_rollouts == "votes" else 0  # votes with tokens
        self._spare_from = 0  # the questions before this position have no spare votes left
        self.num_votes = 0
        self.num_settled = ledger.num_labels * self._voting.samples

    @property
    def is_finished(self) -> bool:
        """Whether all questions have their labels, or `voting.kept` labels are kept."""
        return self._has_enough or (self._feed.ended and not self._open)

    @property
    def remaining(self) -> int | None:
        """See `RequestSource.remaining`."""
        return self._to_request if self._feed.ended or self._has_enough else None

    def next_request(self, max_samples: int) -> SampleRequest | None:
        """Return a request for votes of the first question that needs some; None = nothing to request now."""
        state = self._first_requesting() or self._start_next()
        if state is None:
            return None
        request = self._make_request(state, min(max_samples, state.to_request))
        state.to_request -= request.n
        self._to_request -= request.n
        return request

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        """Return a request for votes beyond the present waves, once no question can be started any more."""
        if self._has_enough:
            return None
        all_started = self._feed.ended or len(self._open) >= self._voting.window
        if self._voting.adaptive == "never" or not all_started or self._should_wait():
            return None
        self._spare_from = max(self._spare_from, self._ledger.num_labels)
        while self._spare_from < self._next_position:
            state = self._open[self._spare_from]
            if state.label is None and len(state.taken) + len(state.in_flight) < self._voting.samples:
                return self._make_request(state, max_samples)
            self._spare_from += 1
        return None

    def pop_unwanted_keys(self) -> list[str]:
        """Return the questions that got their label while votes on them were in flight."""
        keys, self._unwanted = self._unwanted, []
        return keys

    def add_outcomes(self, outcomes: list[PoolOutcome]) -> None:
        """Store votes, decide what can be decided, and write the labels that are next in order."""
        changed: dict[str, QuestionState] = {}
        votes: dict[int, list[Vote]] = {}
        for outcome in outcomes:
            state = self._by_id.get(outcome.key)
            if state is None or state.label:
                continue
            if isinstance(outcome, QuarantinedRequest):
                self._quarantine(state, outcome.reason)
            elif outcome.sample.seed not in state.taken:
                vote = self._make_vote(state, outcome.sample)
                state.add(vote, self._rule is not None)
                votes.setdefault(state.position, []).append(vote)
            else:
                continue
            changed[outcome.key] = state
        for position, new in votes.items():
            self.num_votes += len(new)
            self.num_settled += len(new)
            self._ledger.add_votes(position, new)
        for state in changed.values():
            self._advance(state)
        self._write_labels()

    def _first_requesting(self) -> QuestionState | None:
        while self._requesting:
            state = self._open.get(self._requesting[0])
            if state and state.to_request:
                return state
            heapq.heappop(self._requesting)
        return None

    def _start_next(self) -> QuestionState | None:
        """Start questions up to the first that needs votes; those whose votes are all on disk get their labels."""
        while not self._has_enough and len(self._open) < self._voting.window and not self._should_wait():
            question = self._feed.next()
            if question is None:
                return None
            state = self._start(question)
            self._advance(state)
            if state.to_request:
                return state
            self._write_labels()
        return None

    def _start(self, question: Question) -> QuestionState:
        if question.id in self._by_id:
            raise InputError(f"question {question.id} comes twice ({question.stem[:60]!r}); drop one of the two")
        seeds = derive_seeds(question.id, self._config.runtime.random_seed, self._voting.samples)
        shuffle, random_seed = self._voting.shuffle_options, self._config.runtime.random_seed
        forms = list_forms(question, shuffle, self._paraphrases, random_seed)
        # An array takes a quarter of the memory of a tuple.
        prompts = tuple(array("I", self._prompts.render(form.shown).ids) for form in forms[: len(seeds)])
        state = QuestionState(self._next_position, question, seeds, forms, prompts)
        for seed, vote in self._ledger.known_votes(self._next_position, question).items():
            if seed in seeds:
                state.add(vote, self._rule is not None)
        self.num_settled += len(state.taken)
        self._open[self._next_position] = self._by_id[question.id] = state
        self._next_position += 1
        return state

    def _advance(self, state: QuestionState) -> None:
        """Decide the question if that is possible; else start its next wave once the present one has arrived."""
        letters = tuple(state.question.options)
        if state.label is None and is_certain(state.tally, letters, self._voting_of[state.question.rare]):
            state.label = self._label(state)
            self.num_settled += self._voting.samples - len(state.taken)
        if state.label:
            self._to_request -= state.to_request
            state.to_request = 0
            if state.in_flight:
                self._unwanted.append(state.question.id)
        elif not state.in_flight and not state.to_request:
            state.to_request = self._size_wave(state, letters)
            self._to_request += state.to_request
            heapq.heappush(self._requesting, state.position)

    def _label(self, state: QuestionState) -> Label:
        voting = self._voting_of[state.question.rare]
        if self._rule is None:
            return label_question(state.question, state.tally, voting, **self._list_facts(state))
        shares = self._rule.share(state.question, state.votes, self._ledger.labels_file.parents[1])
        return label_by_rule(state.question, state.tally, shares, voting, **self._list_facts(state))

    def _list_facts(self, state: QuestionState) -> _VoteFacts:
        return {
            "tokens": state.tokens,
            "truncated": state.truncated,
            "policy": self._ledger.policy,
            "sampling": self._ledger.sampling,
        }

    def _size_wave(self, state: QuestionState, letters: tuple[str, ...]) -> int:
        """Return the votes of the next wave: the fewest that may decide, or all where half a window waits for them."""
        if self._next_position - state.position > self._voting.window // 2:
            return self._voting.samples - len(state.taken)
        return count_needed_votes(state.tally, letters, self._voting_of[state.question.rare])

    def _quarantine(self, state: QuestionState, reason: str) -> None:
        state.label = quarantine_question(
            state.question,
            state.tally,
            self._voting_of[state.question.rare],
            reason,
            **self._list_facts(state),
        )
        self.num_settled += self._voting.samples - len(state.taken)

    def _write_labels(self) -> None:
        while not self._has_enough and (state := self._open.get(self._ledger.num_labels)) and state.label:
            self._ledger.add_label(state.position, state.label)
            del self._open[state.position], self._by_id[state.question.id]
        if self._has_enough:
            self._drop_open_questions()

    @property
    def _has_enough(self) -> bool:
        """Whether `voting.kept` labels are kept; no label is written after the last of them."""
        return 0 < self._voting.kept <= self._ledger.num_kept

    def _drop_open_questions(self) -> None:
        self._unwanted += [state.question.id for state in self._open.values() if state.in_flight]
        self._open.clear()
        self._by_id.clear()
        self._requesting.clear()
        self._to_request = 0

    def _make_request(self, state: QuestionState, max_samples: int) -> SampleRequest:
        """Request the lowest seeds that have not been requested: at most `max_samples`, without a gap, in one form."""
        free = [seed for seed in state.all_seeds if seed not in state.taken and seed not in state.in_flight]
        first, size = split_into_runs(free)[0]
        size = min(size, max_samples) if len(state.forms) == 1 else 1
        form = state.find_form(first)
        state.in_flight.update(range(first, first + size))
        return SampleRequest(
            key=state.question.id,
            prompt=state.prompts[form],
            options=state.forms[form].shown.options,
            n=size,
            seed=first,
            temperature=self._voting.temperature,
            top_p=self._voting.top_p,
            max_tokens=self._voting.max_tokens,
            stop=self._prompts.stop,
            opening=self._prompts.opening,
            expected_tokens=state.tokens / len(state.taken) if state.taken else 0.0,
            logprobs=self._voting.needs_logprobs,
            keep_tokens=first < state.all_seeds.start + self._first_rollouts,
        )

    def _make_vote(self, state: QuestionState, sample: Completion) -> Vote:
        form = state.forms[state.find_form(sample.seed)]
        return Vote(
            question_id=state.question.id,
            policy=self._ledger.policy,
            sampling=self._ledger.sampling,
            seed=sample.seed,
            answer=form.restore(sample.answer),
            method=sample.method,
            text=sample.text,
            tokens=sample.tokens,
            truncated=sample.truncated,
            order=form.order,
            paraphrase=form.paraphrase,
            logprob=sample.logprob,
            token_ids=sample.token_ids,
        )


def collect_votes(
    pool: EnginePool,
    scheduler: VoteScheduler,
    ledger: VoteLedger,
    bar: ProgressBar,
    should_stop: Callable[[], bool],
) -> None:
    """Request votes, store them and decide, until every question has its label.

    Raises:
        Stopped: `should_stop`, called after each batch of votes, returned True; all votes so far are on disk.
    """
    for outcomes in pool.run(scheduler):
        scheduler.add_outcomes(outcomes)
        ledger.commit()
        _show(bar, scheduler, ledger)
        if should_stop():
            raise Stopped("voting stopped; the same command takes the votes that are missing")
    ledger.commit()
    _show(bar, scheduler, ledger)


def _show(bar: ProgressBar, scheduler: VoteScheduler, ledger: VoteLedger) -> None:
    bar.set_postfix(labels=ledger.num_labels, kept=ledger.num_kept, refresh=False)
    bar.update(scheduler.num_settled - bar.n)
