"""Which votes the ballots ask for, without a pool."""

from __future__ import annotations

import pytest

from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.bench.voting.simulation_cluster import PlainTokenizer, simulated_config, write_questions
from medssr_dist.inference.pool import Result
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.ballots import Ballots
from medssr_dist.voting.ledger import VoteLedger

K = 16
SPLIT = DrawnAnswers(least=0.3, best=0.3)  # near chance, so that votes are asked to the end


@pytest.fixture
def ballots(tmp_path):
    """Ballots on `count` questions with a window."""
    ledgers = []

    def make(count: int, window: int = 100) -> Ballots:
        write_questions(tmp_path / "questions.jsonl", count)
        ledgers.append(VoteLedger(tmp_path, "policy", "sampling"))
        config = simulated_config(samples=K, window=window, adaptive="lossless")
        return Ballots(config, QuestionFeed(tmp_path / "questions.jsonl"), ledgers[0].__enter__(), PlainTokenizer())

    yield make
    for ledger in ledgers:
        ledger.__exit__(None, None, None)


def answered(ballots: Ballots, request) -> None:
    ballots.take([Result(request.key, SPLIT(request, request.seed + index)) for index in range(request.n)])


def test_the_second_wave_is_the_fewest_that_may_do(ballots):
    ballots = ballots(10)
    first = ballots.next(K)
    answered(ballots, first)
    second = ballots.next(K)
    assert second.key == first.key and first.n + second.n < K


def test_what_half_a_window_waits_for_asks_all_its_votes(ballots):
    ballots = ballots(10, window=6)
    first, *others = [ballots.next(K) for _ in range(4)]
    answered(ballots, first)
    second = ballots.next(K)
    assert second.key == first.key and first.n + second.n == K
    answered(ballots, others[-1])
    third = ballots.next(K)
    assert third.key == others[-1].key and first.n + third.n < K


def test_spare_votes_reach_every_undecided_question_once(ballots):
    count = 200
    ballots = ballots(count, window=1000)
    asked = {}
    while request := ballots.next(K):
        asked[request.key] = request.n
    while request := ballots.spare(3):
        asked[request.key] += request.n
    assert len(asked) == count and set(asked.values()) == {K}
    assert ballots.spare(3) is None
