"""Leases: each sample once, retries after an engine's death, and only requests that kill engines are quarantined."""

from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.inference.leases import NEW_RECORD, LeaseRecord, Leases, split_into_runs
from medssr_dist.inference.requests import Completion, SampleRequest


def sample(seed: int) -> Completion:
    return Completion(seed, "text", 3, truncated=False)


def add(leases: Leases, key="q", n=3, seed=0, engine=0, record=NEW_RECORD, started=0.0):
    return leases.add(SampleRequest(key, "prompt", n=n, seed=seed), engine, started, record, 10.0)


def test_a_sample_is_delivered_once_and_the_last_ends_the_lease():
    leases = Leases()
    lease = add(leases)
    assert [leases.deliver(lease.id, sample(seed)) for seed in (0, 2)] == [[lease]] * 2
    assert leases.deliver(lease.id, sample(2)) == []
    assert leases.deliver(lease.id, sample(9)) == []
    assert len(leases) == 1
    assert leases.deliver(lease.id, sample(1)) == [lease]
    assert len(leases) == 0 and lease.missing == set()


def test_of_two_copies_the_first_counts():
    leases = Leases()
    first, second = add(leases, engine=0), add(leases, engine=1)
    assert leases.deliver(second.id, sample(0)) == [second, first]
    assert leases.deliver(first.id, sample(0)) == []
    assert first.missing == second.missing == {1, 2}


def test_a_duplicate_goes_to_another_engine_without_what_arrived():
    leases = Leases()
    lease = add(leases, n=4)
    leases.duplicate(lease)
    assert leases.pop_waiting(0) is None
    leases.deliver(lease.id, sample(1))
    again = [leases.pop_waiting(1).request for _ in range(2)]
    assert [(request.seed, request.n) for request in again] == [(0, 1), (2, 2)]
    assert leases.pop_waiting(1) is None


def test_after_a_death_only_the_missing_samples_are_queued():
    leases = Leases()
    lease = add(leases, n=5)
    for seed in (1, 2):
        leases.deliver(lease.id, sample(seed))
    assert leases.handle_death(0, "died", 0.0) == []
    again = [(request.seed, request.n) for request, _ in leases.waiting]
    assert again == [(0, 1), (3, 2)]
    assert leases.deliver(lease.id, sample(0)) == []  # too late: its lease has ended


def test_samples_in_flight_elsewhere_are_not_queued_again():
    leases = Leases()
    add(leases, engine=0)
    add(leases, engine=1, n=2)
    leases.handle_death(0, "died", 0.0)
    assert [(request.seed, request.n) for request, _ in leases.waiting] == [(2, 1)]


def test_cancel_drops_a_key_at_engines_and_in_queues():
    leases = Leases()
    add(leases, engine=0)
    leases.handle_death(0, "died", 0.0)
    lease = add(leases, engine=1)
    other = add(leases, key="other", engine=1)
    assert leases.cancel("q") == [lease]
    assert len(leases) == 1 and leases.list_of_engine(1) == [other]


def test_suspects_run_with_few_other_suspects_only():
    leases = Leases()
    for number in range(8):
        add(leases, key=f"q{number}", record=LeaseRecord(deaths=1))
    add(leases, key="new")
    innocent = add(leases, key="innocent", engine=1)
    leases.handle_death(0, "died", 0.0)
    assert len(leases.suspects) == 8
    record = LeaseRecord(deaths=1, last_death_s=0.0)
    assert [(request.key, record) for request, record in leases.waiting] == [("new", record)]
    assert leases.pop_suspect(1) is None  # another request is in flight there
    leases.deliver(innocent.id, sample(0))
    for _ in range(2):  # 8 were together, so 2 may be
        request, record = leases.pop_suspect(2)
        leases.add(request, 2, 0.0, record, 1.0)
    assert leases.pop_suspect(2) is None


def run_to_the_end(leases: Leases, poison: set[str], engine=0) -> tuple[set[str], set[str], int]:
    """One engine that dies whenever it holds a poisoned key: (answered, quarantined, deaths)."""
    answered, quarantined, deaths = set(), set(), 0
    while len(leases):
        while found := leases.pop_suspect(engine):
            leases.add(found.request, engine, 0.0, found.record, 1.0)
        while leases.waiting and not any(lease.is_suspect for lease in leases.list_of_engine(engine)):
            request, record = leases.waiting.popleft()
            leases.add(request, engine, 0.0, record, 1.0)
        held = leases.list_of_engine(engine)
        if any(lease.request.key in poison for lease in held):
            deaths += 1
            for each in leases.handle_death(engine, "killed", 100.0 * deaths):
                quarantined.add(each.key)
                leases.cancel(each.key)
            continue
        for lease in held:
            for seed in sorted(lease.missing):
                leases.deliver(lease.id, sample(seed))
            answered.add(lease.request.key)
    return answered, quarantined, deaths


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=3))
def test_killers_are_quarantined_and_all_others_answered(questions, poison):
    leases = Leases()
    for number in range(questions):
        add(leases, key=str(number))
    poison = {str(number) for number in poison if number < questions}
    answered, quarantined, deaths = run_to_the_end(leases, poison)
    assert quarantined == poison
    assert answered == {str(number) for number in range(questions)} - poison
    assert deaths <= 7 * max(1, len(poison))


def test_the_reason_counts_the_deaths():
    leases = Leases()
    add(leases, key="poison", record=LeaseRecord(deaths=1, deaths_alone=1))
    (quarantined,) = leases.handle_death(0, "segmentation fault", 100.0)
    assert (quarantined.key, quarantined.reason) == (
        "poison",
        "in flight at 2 engine deaths, 2 times alone; the last: segmentation fault",
    )


def test_two_deaths_of_one_node_count_once():
    leases = Leases()
    add(leases, key="alone")
    quarantined = []
    for engine, time in enumerate((5.0, 5.1, 5.2)):
        quarantined.append(leases.handle_death(engine, "lost", time))
        for queue in (leases.waiting, leases.suspects):
            while queue:
                request, record = queue.popleft()
                leases.add(request, engine + 1, time, record, 1.0)
    assert [[each.key for each in found] for found in quarantined] == [[], [], ["alone"]]


def test_a_requeued_lease_waits_for_another_engine():
    leases = Leases()
    lease = add(leases, n=4)
    leases.deliver(lease.id, sample(0))
    leases.requeue(lease)
    assert [(request.seed, request.n, record) for request, record in leases.waiting] == [(1, 3, NEW_RECORD)]


def test_a_late_lease_is_retried_once_and_then_quarantined():
    leases = Leases()
    lease = add(leases, started=5.0)
    assert leases.list_started_before(5.0) == [] and leases.list_started_before(6.0) == [lease]
    assert leases.retry_or_quarantine(lease, "no end within 10 s") is None
    request, record = leases.waiting.popleft()
    again = leases.add(request, 1, 20.0, record, 1.0)
    quarantined = leases.retry_or_quarantine(again, "no end within 10 s")
    assert (quarantined.key, quarantined.reason) == ("q", "no end within 10 s, 2 times")


@given(st.sets(st.integers(0, 40)))
def test_runs_cover_the_seeds_and_are_as_few_as_possible(seeds):
    runs = split_into_runs(sorted(seeds))
    assert [seed for first, size in runs for seed in range(first, first + size)] == sorted(seeds)
    assert len(runs) == sum(seed - 1 not in seeds for seed in seeds)


def test_a_lost_duplicate_can_be_duplicated_again():
    leases = Leases()
    slow = add(leases, engine=0)
    leases.duplicate(slow)
    request, record = leases.waiting.popleft()
    leases.add(request, 1, 0.0, record, 1.0)
    leases.duplicate(slow)
    assert not leases.waiting
    leases.handle_death(1, "died", 0.0)
    leases.duplicate(slow)
    assert [(request.seed, request.n) for request, _ in leases.waiting] == [(0, 3)]
