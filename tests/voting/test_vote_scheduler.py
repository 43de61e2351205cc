"""Which votes the scheduler requests, without a pool."""

from __future__ import annotations

import pytest

from medssr_dist.bench.voting.simulated_vote import PlainPrompts, make_simulated_config, write_questions
from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.inference.requests import PoolResult
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler

K = 16
NEAR_CHANCE = DrawnAnswers(least=0.3, best=0.3)  # almost all votes are needed to decide


@pytest.fixture
def make_scheduler(tmp_path):
    """Returns a function that makes a scheduler for `count` questions."""
    ledgers = []

    def make(count: int, window: int = 100) -> VoteScheduler:
        write_questions(tmp_path / "questions.jsonl", count)
        ledgers.append(VoteLedger(tmp_path, "policy", "sampling"))
        config = make_simulated_config(samples=K, window=window, adaptive="lossless")
        return VoteScheduler(config, QuestionFeed(tmp_path / "questions.jsonl"), ledgers[0].__enter__(), PlainPrompts())

    yield make
    for ledger in ledgers:
        ledger.__exit__(None, None, None)


def answer(scheduler: VoteScheduler, request) -> None:
    scheduler.add_outcomes(
        [PoolResult(request.key, NEAR_CHANCE(request, request.seed + index)) for index in range(request.n)]
    )


def test_the_second_wave_has_the_fewest_votes_to_decide(make_scheduler):
    scheduler = make_scheduler(10)
    first = scheduler.next_request(K)
    answer(scheduler, first)
    second = scheduler.next_request(K)
    assert second.key == first.key and first.n + second.n < K


def test_a_question_that_blocks_requests_all_its_votes(make_scheduler):
    scheduler = make_scheduler(10, window=6)
    first, *others = [scheduler.next_request(K) for _ in range(4)]
    answer(scheduler, first)
    second = scheduler.next_request(K)
    assert second.key == first.key and first.n + second.n == K
    answer(scheduler, others[-1])
    third = scheduler.next_request(K)
    assert third.key == others[-1].key and first.n + third.n < K


def test_spare_votes_reach_each_undecided_question_once(make_scheduler):
    count = 200
    scheduler = make_scheduler(count, window=1000)
    requested = {}
    while request := scheduler.next_request(K):
        requested[request.key] = request.n
    while request := scheduler.spare_request(3):
        requested[request.key] += request.n
    assert len(requested) == count and set(requested.values()) == {K}
    assert scheduler.spare_request(3) is None
