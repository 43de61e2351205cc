"""The pool's coordinator, with engines that die, hang, refuse requests and lag."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest
from far_engine import FarEngine

from medssr_dist.bench.voting.simulation import SimulatedEngine, Speed, VirtualLoop
from medssr_dist.config.voting import Voting
from medssr_dist.errors import EnginesFailed, InputError
from medssr_dist.inference import engine_slot
from medssr_dist.inference import pool as pool_module
from medssr_dist.inference.leases import LeaseRecord, QuarantinedRequest, QueuedRequest
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.requests import Completion, PoolResult, RequestList, SampleRequest


def requests(number: int, n=3) -> list[SampleRequest]:
    return [SampleRequest(f"q{index}", (1, 2), n=n, seed=100 * index) for index in range(number)]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    for name, value in {"_POLL_S": 0.01, "_WATCH_S": 0.02, "_BACKOFF_S": 0.01, "_GROW_S": 0.02}.items():
        monkeypatch.setattr(pool_module, name, value)


def voting(**changes) -> Voting:
    return Voting(**{"in_flight": 8, "stall_s": 0.2, "deadline_s": 60} | changes)


def answers(engines, sent, **options) -> dict[str, list[Completion]]:
    settings = options.pop("voting", voting())
    with EnginePool(engines, settings, **options) as pool:
        return dict(pool.generate(sent))


def check_whole(found: dict[str, list[Completion]], sent: list[SampleRequest]) -> None:
    assert found.keys() == {request.key for request in sent}
    for request in sent:
        seeds = list(range(request.seed, request.seed + request.n))
        assert [sample.seed for sample in found[request.key]] == seeds
        assert [sample.text for sample in found[request.key]] == [f"{request.key}/{seed}" for seed in seeds]


def test_all_engines_answer_in_seed_order():
    sent, engines = requests(40), [FarEngine(str(number), 0.001) for number in range(3)]
    check_whole(answers(engines, sent), sent)
    assert all(len(engine.given) >= 8 for engine in engines)


def test_without_requests_no_engine_is_started():
    engine = FarEngine()
    assert answers([engine], []) == {}
    assert engine.attempts == 0


def test_engines_are_kept_full_and_not_overfull():
    sent, engine = requests(30, n=2), FarEngine(delay=0.002)
    outstanding = []

    class Counting(EnginePool):
        def _handle_output(self, slot, output):
            super()._handle_output(slot, output)
            outstanding.append(slot.samples)

        def _assign_requests(self, source):
            super()._assign_requests(source)
            outstanding.append(self._slots[0].samples)

    with Counting([engine], voting()) as pool:
        check_whole(dict(pool.generate(sent)), sent)
    assert max(outstanding) in (16, 17)  # 8, and 8 that are queued; room for one sample is room for a request of two


def test_a_dead_engine_is_replaced_and_no_sample_lost():
    deaths = iter([True, True, False])

    def fault(far, request):
        return "die at 1" if request.key == "q7" and next(deaths) else None

    sent, events = requests(20), []
    engines = [FarEngine(name, 0.001, fault) for name in "ab"]
    # q7 is in flight at two deaths, at one of them with others: that is not enough to quarantine it.
    check_whole(answers(engines, sent, on_event=lambda *event: events.append(event)), sent)
    assert [event for _, event, _ in events].count("died") == 2
    for name in "ab":  # the events of each life, in order
        lives = " ".join(event for engine, event, _ in events if engine == name).split("start")[1:]
        assert {life.strip() for life in lives} <= {
            "ready",
            "ready first token",
            "ready first token died",
            "ready died",
        }


def test_an_engine_that_cannot_be_changed_is_replaced():
    changed, sent = [], requests(20)

    async def change(engine):
        changed.append(engine.name)
        if engine.name == "b":
            raise ConnectionError("it is gone")

    engines, events = [FarEngine(name, 0.001) for name in "ab"], []
    with EnginePool(engines, voting(), on_event=lambda *event: events.append(event)) as pool:
        pool.change_engines(change)
        assert changed == [], "no engine is up before the first request"
        check_whole(dict(pool.generate(sent)), sent)
        pool.change_engines(change)
        check_whole(dict(pool.generate(sent)), sent)
    assert sorted(changed) == ["a", "b"]
    assert [engine.attempts for engine in engines] == [1, 2]
    assert ("b", "died", "could not be changed: ConnectionError: it is gone") in events


def test_a_request_that_kills_engines_is_quarantined():
    sent = requests(24)
    engines = [FarEngine(name, 0.001, lambda far, request: "die" if request.key == "q5" else None) for name in "ab"]
    outcomes = []
    with EnginePool(engines, voting()) as pool:
        source = RequestList(iter(sent))
        for batch in pool.run(source):
            outcomes += batch
    quarantined = [outcome for outcome in outcomes if isinstance(outcome, QuarantinedRequest)]
    assert [each.key for each in quarantined] == ["q5"]
    assert "engine core died" in quarantined[0].reason
    got = Counter((outcome.key, outcome.sample.seed) for outcome in outcomes if isinstance(outcome, PoolResult))
    wanted = {(request.key, request.seed + i) for request in sent if request.key != "q5" for i in range(request.n)}
    assert set(got) == wanted and set(got.values()) == {1}


def test_a_suspect_does_not_wait_for_all_others():
    outcomes = []
    with EnginePool([FarEngine(delay=0.001)], voting()) as pool:
        for turn, batch in enumerate(pool.run(RequestList(iter(requests(200))))):
            if turn == 40:  # the engine is busy
                suspect = SampleRequest("suspect", (1, 2))
                pool._leases.suspects.append(QueuedRequest(suspect, LeaseRecord(deaths=2, max_group=1)))
            outcomes += batch
    assert len(outcomes) == 200 * 3 + 1
    assert [outcome.key for outcome in outcomes].index("suspect") < len(outcomes) // 2


def test_an_engine_that_hangs_is_replaced():
    stuck = iter([True])
    events = []
    engine = FarEngine("a", 0.001, lambda far, request: "hang" if next(stuck, False) else None)
    sent = requests(6)
    check_whole(answers([engine], sent, on_event=lambda *event: events.append(event)), sent)
    details = [detail for _, event, detail in events if event == "died"]  # on a busy machine, maybe more than once
    assert details and all("yielded no token" in detail for detail in details)
    assert engine.attempts == 1 + len(details)


def test_a_request_without_end_is_retried_then_refused():
    sent = requests(4)
    engines = [FarEngine(name, 0.01, lambda far, request: "hang" if request.key == "q2" else None) for name in "ab"]
    with EnginePool(engines, voting(stall_s=60, deadline_s=0.3)) as pool, pytest.raises(InputError) as error:
        dict(pool.generate(sent))
    assert "q2" in str(error.value) and "voting.deadline_s = 0.3 s, 2 times" in str(error.value)


def test_a_request_that_engines_refuse_is_reported():
    engine = FarEngine("a", 0.0, lambda far, request: "refuse" if request.key == "q1" else None)
    with pytest.raises(InputError, match="q1: refused by a: bad prompt, 2 times"):
        answers([engine], requests(3))


def test_the_run_ends_when_no_engine_survives():
    def never(attempt):
        raise OSError("no such device")

    with pytest.raises(EnginesFailed, match="no engine is left: .*3 times in a row.*no such device.*resumes"):
        answers([FarEngine("a", on_start=never), FarEngine("b", on_start=never)], requests(3))


def test_an_engine_that_never_starts_does_not_block_others():
    def never(attempt):
        raise OSError("no such device")

    sent = requests(10)
    check_whole(answers([FarEngine("a", on_start=never), FarEngine("b", 0.001)], sent), sent)


def test_an_input_error_at_a_start_ends_the_run():
    def other_weights(attempt):
        raise InputError("the directory holds other weights")

    with pytest.raises(InputError, match="other weights"):
        answers([FarEngine("a", on_start=other_weights), FarEngine("b", 0.05)], requests(3))


def test_engines_join_during_a_run():
    spare = iter([FarEngine("late", 0.001)])
    sent = requests(60)
    late = []

    def grow():
        engine = next(spare, None)
        if engine:
            late.append(engine)
        return engine

    check_whole(answers([FarEngine("a", 0.005)], sent, grow=grow), sent)
    assert late and late[0].given


def test_a_slow_engine_gets_less_and_is_duplicated_at_the_end(monkeypatch):
    monkeypatch.setattr(engine_slot, "_KNOWN_S", 0.05)
    sent = requests(200, n=2)
    quick, slow = FarEngine("quick", 0.002), FarEngine("slow", 0.4)
    check_whole(answers([quick, slow], sent, voting=voting(stall_s=60)), sent)
    assert len(slow.given) < len(quick.given) / 4
    assert slow.aborted  # the quick one answered what both had in flight


class EndingList(RequestList):
    """Reports that nothing remains once all is requested."""

    remaining = property(lambda self: 0 if self.is_finished else None)


@pytest.mark.parametrize(("make_source", "count", "within"), [(RequestList, 12_000, 140), (EndingList, 3_500, 80)])
def test_late_samples_of_a_straggler_are_duplicated(make_source, count, within):
    """A sample of 2000 tokens takes 40 s, and 150 s on the straggler; at the end of the run its age does not matter."""
    loop, long, given, came = VirtualLoop(), set(), [], []

    def answer(request, seed):
        return Completion(seed, request.key, 2000 if request.key in long else 200, truncated=False)

    def slow_answer(request, seed):
        if loop.time() > 50 and not long:
            long.add(request.key)
            given.append(loop.time())
        return answer(request, seed)

    engines = [SimulatedEngine(str(number), Speed(0.02, 0.0, 64), answer) for number in range(3)]
    engines.append(SimulatedEngine("straggler", Speed(0.02, 0.0, 64), slow_answer, slowness=3.75))
    source = make_source(SampleRequest(f"q{number}", (1, 2), max_tokens=2000) for number in range(count))
    outcomes = []
    with EnginePool(engines, voting(in_flight=64, stall_s=600, deadline_s=600), loop=loop) as pool:
        for batch in pool.run(source):
            outcomes += batch
            came += [loop.time() for outcome in batch if outcome.key in long]
    assert len({outcome.key for outcome in outcomes}) == len(outcomes) == count
    assert 40 <= came[0] - given[0] < within


@pytest.mark.parametrize("seed", range(5))
def test_random_deaths_lose_and_double_nothing(seed):
    rng, deaths = random.Random(seed), count()

    def fault(far, request):
        return f"die at {rng.randrange(3)}" if next(deaths) < 60 and rng.random() < 0.15 else None

    sent = requests(50)
    with EnginePool([FarEngine(name, 0.001, fault) for name in "abc"], voting()) as pool:
        outcomes = [outcome for batch in pool.run(RequestList(iter(sent))) for outcome in batch]
    quarantined = {outcome.key for outcome in outcomes if isinstance(outcome, QuarantinedRequest)}
    got = Counter((outcome.key, outcome.sample.seed) for outcome in outcomes if isinstance(outcome, PoolResult))
    assert set(got.values()) == {1}
    wanted = {(each.key, each.seed + i) for each in sent if each.key not in quarantined for i in range(each.n)}
    assert wanted <= set(got)


class Tail:
    """One question first; then, once all engines are up, `left` samples of another."""

    is_finished = False

    def __init__(self, engines, left: int):
        self._engines, self._rest, self._begun = engines, left, False

    @property
    def remaining(self):
        return self._rest if all(engine.attempts for engine in self._engines) else None

    def next_request(self, max_samples):
        if not self._begun:
            self._begun = True
            return SampleRequest("first", (1, 2))
        count = min(max_samples, self.remaining or 0)
        if not count:
            return None
        self._rest -= count
        self.is_finished = not self._rest
        return SampleRequest("q", (1, 2), n=count, seed=self._rest)

    def spare_request(self, max_samples):
        return None

    def pop_unwanted_keys(self):
        return []


def test_the_last_samples_are_shared_among_the_engines():
    engines = [FarEngine(name, 0.05) for name in "abc"]
    with EnginePool(engines, voting()) as pool:
        list(pool.run(Tail(engines, 7)))
    shares = sorted(sum(request.n for request in engine.given if request.key == "q") for engine in engines)
    assert sum(shares) == 7 and shares[-1] < 7
