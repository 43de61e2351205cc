"""Which votes the scheduler ask for, without a pool."""

from __future__ import annotations

import pytest

from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.bench.voting.simulation_cluster import PlainTokenizer, simulated_config, write_questions
from medssr_dist.inference.requests import PoolResult
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler

K = 16
SPLIT = DrawnAnswers(least=0.3, best=0.3)  # near chance, so that votes are asked to the end


@pytest.fixture
def scheduler(tmp_path):
    """VoteScheduler on `count` questions with a window."""
    ledgers = []

    def make(count: int, window: int = 100) -> VoteScheduler:
        write_questions(tmp_path / "questions.jsonl", count)
        ledgers.append(VoteLedger(tmp_path, "policy", "sampling"))
        config = simulated_config(samples=K, window=window, adaptive="lossless")
        return VoteScheduler(
            config, QuestionFeed(tmp_path / "questions.jsonl"), ledgers[0].__enter__(), PlainTokenizer()
        )

    yield make
    for ledger in ledgers:
        ledger.__exit__(None, None, None)


def answered(scheduler: VoteScheduler, request) -> None:
    scheduler.add_outcomes(
        [PoolResult(request.key, SPLIT(request, request.seed + index)) for index in range(request.n)]
    )


def test_the_second_wave_is_the_fewest_that_may_do(scheduler):
    scheduler = scheduler(10)
    first = scheduler.next_request(K)
    answered(scheduler, first)
    second = scheduler.next_request(K)
    assert second.key == first.key and first.n + second.n < K


def test_what_half_a_window_waits_for_asks_all_its_votes(scheduler):
    scheduler = scheduler(10, window=6)
    first, *others = [scheduler.next_request(K) for _ in range(4)]
    answered(scheduler, first)
    second = scheduler.next_request(K)
    assert second.key == first.key and first.n + second.n == K
    answered(scheduler, others[-1])
    third = scheduler.next_request(K)
    assert third.key == others[-1].key and first.n + third.n < K


def test_spare_votes_reach_every_undecided_question_once(scheduler):
    count = 200
    scheduler = scheduler(count, window=1000)
    asked = {}
    while request := scheduler.next_request(K):
        asked[request.key] = request.n
    while request := scheduler.spare_request(3):
        asked[request.key] += request.n
    assert len(asked) == count and set(asked.values()) == {K}
    assert scheduler.spare_request(3) is None
