"""The simulated parts of the voting benchmark: virtual clock, engines and answers. No timings are asserted."""

import asyncio

import pytest

from medssr_dist.bench.voting.coordinator import AnswerBank
from medssr_dist.bench.voting.simulation import DrawnAnswers, Failure, SimulatedEngine, Speed, VirtualLoop
from medssr_dist.inference.requests import Completion, SampleRequest

OPTIONS = dict.fromkeys("ABCD", "")
SECOND_A_TOKEN = Speed(fixed_s=1.0, per_sample_s=0.0, batch=2)


def run(coroutine):
    """In virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(coroutine), loop.time()
    finally:
        loop.close()


def exactly(tokens: dict[int, int]):
    """An answer function: seed -> so many tokens."""
    return lambda request, seed: Completion(seed, "", tokens[seed], False, "A", "bare")


def request(key: str = "ab", n: int = 1, seed: int = 0) -> SampleRequest:
    return SampleRequest(key, "", options=OPTIONS, n=n, seed=seed)


# --- clock ---------------------------------------------------------------------------------------------------------


def test_hours_pass_at_once_and_in_order():
    async def work():
        seen = []

        async def after(seconds: float):
            await asyncio.sleep(seconds)
            seen.append((seconds, asyncio.get_running_loop().time()))

        await asyncio.gather(*map(after, (7200.0, 1.0, 3600.0)))
        return seen

    seen, now = run(work())
    assert [each for each, _ in seen] == [1.0, 3600.0, 7200.0]
    assert all(time == pytest.approx(wanted) for wanted, time in seen) and now == pytest.approx(7200.0)


def test_timeouts_are_in_virtual_time():
    async def work():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 60)

    assert run(work())[1] == pytest.approx(60)


def test_waiting_for_nothing_is_an_error():
    async def work():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        run(work())


# --- engine --------------------------------------------------------------------------------------------------------


async def all_of(engine: SimulatedEngine, count: int) -> list[tuple[float, int, int]]:
    """(time, lease, seed) of the first `count` samples."""
    found = []
    while len(found) < count:
        taken = await engine.collect()
        found += [(asyncio.get_running_loop().time(), lease, sample.seed) for lease, sample in taken.samples]
    return found


def test_an_engine_decodes_a_token_a_step_for_each_place():
    async def work():
        engine = SimulatedEngine("e", SECOND_A_TOKEN, exactly({0: 10, 1: 4, 2: 3}), linger_s=0.0)
        await engine.start()
        engine.submit([(5, request(n=3))], [])
        assert engine.running == 2  # the third waits for a place
        found = await all_of(engine, 3)
        await engine.stop()
        return found, engine

    (found, engine), _ = run(work())
    assert [(round(time, 6), seed) for time, _, seed in found] == [(4, 1), (7, 2), (10, 0)]
    assert {lease for _, lease, _ in found} == {5}
    assert engine.generated == pytest.approx(17) and engine.up_s == pytest.approx(10)
    assert engine.capacity(99.0) == pytest.approx(20)  # 2 places x 10 s, whatever the time is after its stop


def test_a_slow_engine_and_a_full_batch_take_longer():
    speed = Speed(fixed_s=1.0, per_sample_s=0.5, batch=4)
    assert speed.step_s(2) == 2.0 and speed.max_tokens_per_s == pytest.approx(4 / 3)

    async def work():
        engine = SimulatedEngine("e", speed, exactly({0: 6, 1: 6}), linger_s=0.0, slowness=3.0)
        await engine.start()
        engine.submit([(1, request(n=2))], [])
        return await all_of(engine, 2)

    assert [round(time, 6) for time, _, _ in run(work())[0]] == [36, 36]


def test_aborted_samples_are_not_returned_and_free_their_place():
    async def work():
        engine = SimulatedEngine("e", SECOND_A_TOKEN, exactly({0: 50, 1: 50, 9: 5}), linger_s=0.0)
        await engine.start()
        engine.submit([(1, request(n=2)), (2, request(seed=9))], [])
        await asyncio.sleep(10)
        engine.submit([], [1])
        return await all_of(engine, 1)

    assert [(round(time, 6), lease, seed) for time, lease, seed in run(work())[0]] == [(15, 2, 9)]


def test_tokens_are_reported_early_and_each_once():
    async def work():
        engine = SimulatedEngine("e", SECOND_A_TOKEN, exactly({0: 30}), linger_s=0.0)
        await engine.start()
        engine.submit([(1, request())], [])
        reported = 0
        while True:
            taken = await engine.collect()
            reported += taken.tokens
            if taken.samples:
                return reported

    assert run(work())[0] == 30


def test_an_engine_dies_and_lives_again():
    async def work():
        lives = iter([Failure(after_s=5.0), Failure()])
        engine = SimulatedEngine("e", SECOND_A_TOKEN, exactly({0: 9}), start_s=60.0, life=lambda: next(lives))
        await engine.start()
        engine.submit([(1, request())], [])
        with pytest.raises(ConnectionError):
            while True:
                assert not (await engine.collect()).samples
        await engine.stop()
        assert engine.running == 0
        await engine.start()
        engine.submit([(2, request())], [])
        assert [lease for _, lease, _ in await all_of(engine, 1)] == [2]
        return engine

    engine, now = run(work())
    assert engine.failures == [(65.0, "died")] and now >= 134


def test_a_hanging_engine_is_silent():
    async def work():
        engine = SimulatedEngine("e", SECOND_A_TOKEN, exactly({0: 9}), life=lambda: Failure(3.0, wedges=True))
        await engine.start()
        engine.submit([(1, request())], [])
        with pytest.raises(asyncio.TimeoutError):
            while True:
                await asyncio.wait_for(engine.collect(), 100)
        return engine

    engine, _ = run(work())
    assert engine.failures == [(3.0, "wedged")] and engine.generated == pytest.approx(3)


# --- answers -------------------------------------------------------------------------------------------------------


def test_drawn_answers_depend_on_question_and_seed_alone():
    answers = DrawnAnswers()
    assert answers(request("ab", seed=7), 9) == answers(request("ab", n=4), 9)
    assert answers(request("ab"), 9) != answers(request("ac"), 9)


@pytest.mark.parametrize("accuracy", [0.3, 0.9])
def test_drawn_answers_have_the_configured_statistics(accuracy):
    answers = DrawnAnswers(least=accuracy, best=accuracy, invalid=0.1, tokens=100, max_tokens=300)
    share = []
    for question in range(200):
        drawn = [answers.draw(f"{question:x}", OPTIONS, seed) for seed in range(40)]
        valid = [sample.answer for sample in drawn if sample.answer]
        share.append(max(valid.count(letter) for letter in "ABCD") / len(valid))
        assert all(1 <= sample.tokens <= 300 for sample in drawn)
        assert all(sample.answer is None for sample in drawn if sample.truncated)
    assert sum(share) / len(share) == pytest.approx(max(accuracy, 0.37), abs=0.06)  # 0.37: the top of 40 even draws


def test_the_bank_gives_every_seed_its_own_sample():
    bank = AnswerBank()
    samples = [bank(request("a1b2"), seed) for seed in range(100, 116)]
    assert [sample.seed for sample in samples] == list(range(100, 116))
    assert samples[0] == bank(request("a1ff", n=3), 100) and 400 <= len(samples[0].text) <= 450
