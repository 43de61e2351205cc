"""Leases: a sample is delivered once, what a dead engine held comes back, a killer is found and no innocent with it."""

from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.inference.leases import NEW_RECORD, LeaseRecord, Leases, split_into_runs
from medssr_dist.inference.requests import Completion, SampleRequest


def sample(seed: int) -> Completion:
    return Completion(seed, "text", 3, truncated=False)


def leased(leases: Leases, key="q", n=3, seed=0, engine=0, record=NEW_RECORD, since=0.0):
    return leases.add(SampleRequest(key, "prompt", n=n, seed=seed), engine, since, record, 10.0)


def test_each_sample_is_delivered_once_and_the_last_ends_the_lease():
    leases = Leases()
    lease = leased(leases)
    assert [leases.deliver(lease.id, sample(seed)) for seed in (0, 2)] == [[lease]] * 2
    assert leases.deliver(lease.id, sample(2)) == []
    assert leases.deliver(lease.id, sample(9)) == []
    assert len(leases) == 1
    assert leases.deliver(lease.id, sample(1)) == [lease]
    assert len(leases) == 0 and lease.missing == set()


def test_a_copy_counts_once_whichever_comes_first():
    leases = Leases()
    first, second = leased(leases, engine=0), leased(leases, engine=1)
    assert leases.deliver(second.id, sample(0)) == [second, first]
    assert leases.deliver(first.id, sample(0)) == []
    assert first.missing == second.missing == {1, 2}


def test_a_copy_goes_to_another_engine_and_not_for_what_has_come():
    leases = Leases()
    lease = leased(leases, n=4)
    leases.copy(lease)
    assert leases.next_waiting(0) is None
    leases.deliver(lease.id, sample(1))
    again = [leases.next_waiting(1)[0] for _ in range(2)]
    assert [(request.seed, request.n) for request in again] == [(0, 1), (2, 2)]
    assert leases.next_waiting(1) is None


def test_what_a_dead_engine_held_is_asked_again_without_what_had_come():
    leases = Leases()
    lease = leased(leases, n=5)
    for seed in (1, 2):
        leases.deliver(lease.id, sample(seed))
    assert leases.bury(0, "died", 0.0) == []
    again = [(request.seed, request.n) for request, _ in leases.waiting]
    assert again == [(0, 1), (3, 2)]
    assert leases.deliver(lease.id, sample(0)) == []  # too late: its lease is over


def test_what_another_engine_still_holds_is_not_asked_again():
    leases = Leases()
    leased(leases, engine=0)
    leased(leases, engine=1, n=2)
    leases.bury(0, "died", 0.0)
    assert [(request.seed, request.n) for request, _ in leases.waiting] == [(2, 1)]


def test_cancel_forgets_a_key_at_engines_and_in_the_queues():
    leases = Leases()
    leased(leases, engine=0)
    leases.bury(0, "died", 0.0)
    lease = leased(leases, engine=1)
    other = leased(leases, key="other", engine=1)
    assert leases.cancel("q") == [lease]
    assert len(leases) == 1 and leases.of(1) == [other]


def test_those_at_a_second_death_share_an_engine_with_few_of_their_kind_alone():
    leases = Leases()
    for number in range(8):
        leased(leases, key=f"q{number}", record=LeaseRecord(deaths=1))
    leased(leases, key="new")
    innocent = leased(leases, key="innocent", engine=1)
    leases.bury(0, "died", 0.0)
    assert len(leases.suspects) == 8
    assert [(request.key, record) for request, record in leases.waiting] == [("new", LeaseRecord(deaths=1, died=0.0))]
    assert leases.next_suspect(1) is None  # an innocent is there
    leases.deliver(innocent.id, sample(0))
    for _ in range(2):  # 8 were together, so 2 may be
        request, record = leases.next_suspect(2)
        leases.add(request, 2, 0.0, record, 1.0)
    assert leases.next_suspect(2) is None


def run_to_the_end(leases: Leases, poison: set[str], engine=0) -> tuple[set[str], set[str], int]:
    """One engine that dies whenever it holds a poisoned key: (answered, refused, deaths)."""
    answered, refused, deaths = set(), set(), 0
    while len(leases):
        while found := leases.next_suspect(engine):
            leases.add(found[0], engine, 0.0, found[1], 1.0)
        while leases.waiting and not any(lease.suspect for lease in leases.of(engine)):
            request, record = leases.waiting.popleft()
            leases.add(request, engine, 0.0, record, 1.0)
        held = leases.of(engine)
        if any(lease.request.key in poison for lease in held):
            deaths += 1
            for each in leases.bury(engine, "killed", 100.0 * deaths):
                refused.add(each.key)
                leases.cancel(each.key)
            continue
        for lease in held:
            for seed in sorted(lease.missing):
                leases.deliver(lease.id, sample(seed))
            answered.add(lease.request.key)
    return answered, refused, deaths


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=3))
def test_killers_are_quarantined_and_all_others_answered(questions, poison):
    leases = Leases()
    for number in range(questions):
        leased(leases, key=str(number))
    poison = {str(number) for number in poison if number < questions}
    answered, refused, deaths = run_to_the_end(leases, poison)
    assert refused == poison
    assert answered == {str(number) for number in range(questions)} - poison
    assert deaths <= 7 * max(1, len(poison))


def test_the_reason_tells_the_deaths():
    leases = Leases()
    leased(leases, key="poison", record=LeaseRecord(deaths=1, alone=1))
    (refused,) = leases.bury(0, "segmentation fault", 100.0)
    assert (refused.key, refused.reason) == (
        "poison",
        "in flight at 2 engine deaths, 2 times alone; the last: segmentation fault",
    )


def test_two_engines_lost_together_make_no_killer_of_what_was_alone_at_both_but_a_third_does():
    leases = Leases()
    leased(leases, key="alone")
    refused = []
    for engine, time in enumerate((5.0, 5.1, 5.2)):
        refused.append(leases.bury(engine, "lost", time))
        for queue in (leases.waiting, leases.suspects):
            while queue:
                request, record = queue.popleft()
                leases.add(request, engine + 1, time, record, 1.0)
    assert [[each.key for each in found] for found in refused] == [[], [], ["alone"]]


def test_what_is_taken_back_waits_for_another_engine():
    leases = Leases()
    lease = leased(leases, n=4)
    leases.deliver(lease.id, sample(0))
    leases.take_back(lease)
    assert [(request.seed, request.n, record) for request, record in leases.waiting] == [(1, 3, NEW_RECORD)]


def test_an_overdue_lease_is_asked_once_more_and_then_refused():
    leases = Leases()
    lease = leased(leases, since=5.0)
    assert leases.overdue(5.0) == [] and leases.overdue(6.0) == [lease]
    assert leases.give_back(lease, "no end within 10 s") is None
    request, record = leases.waiting.popleft()
    again = leases.add(request, 1, 20.0, record, 1.0)
    refused = leases.give_back(again, "no end within 10 s")
    assert (refused.key, refused.reason) == ("q", "no end within 10 s, 2 times")


@given(st.sets(st.integers(0, 40)))
def test_contiguous_covers_the_seeds_in_the_fewest_runs(seeds):
    runs = split_into_runs(sorted(seeds))
    assert [seed for first, count in runs for seed in range(first, first + count)] == sorted(seeds)
    assert len(runs) == sum(seed - 1 not in seeds for seed in seeds)


def test_a_copy_that_is_lost_can_be_copied_again():
    leases = Leases()
    slow = leased(leases, engine=0)
    leases.copy(slow)
    request, record = leases.waiting.popleft()
    leases.add(request, 1, 0.0, record, 1.0)
    leases.copy(slow)
    assert not leases.waiting
    leases.bury(1, "died", 0.0)
    leases.copy(slow)
    assert [(request.seed, request.n) for request, _ in leases.waiting] == [(0, 3)]
