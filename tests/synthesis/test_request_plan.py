import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import Entity
from medssr_dist.synthesis.request_plan import Draws

ENTITIES = [Entity(f"OMIM:{n}", f"Disease {n}") for n in range(30)]


def seed(number: int, topic: str = "") -> Question:
    return Question.make(f"Vignette {number}?", ["Gout", "Lupus"], source="t", topic=topic)


SEEDS = [seed(n, f"topic {n % 3}") for n in range(20)]
POLICIES = [
    {"seed_pairs": pairs, "entity_choice": choice}
    for pairs in ("uniform", "topic")
    for choice in ("uniform", "coverage")
]


def draws(alpha=0.5, random_seed=42, seeds=SEEDS, entities=ENTITIES, **policy) -> Draws:
    return Draws(random_seed, alpha, seeds, entities, **policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_any_subset_in_any_order_gives_the_same_draws(policy):
    whole = draws(**policy)
    expected = [whole.draw(index) for index in range(300)]
    shuffled = random.Random(1).sample(range(300), 120)
    resumed = draws(**policy)
    assert [resumed.draw(index) for index in shuffled] == [expected[index] for index in shuffled]
    shard = draws(**policy)
    assert [shard.draw(index) for index in range(1, 300, 7)] == expected[1::7]
    assert draws(random_seed=43, **policy).draw(17) != expected[17]


def test_another_process_makes_the_same_draws():
    code = (
        "from collections import namedtuple\nfrom medssr_dist.synthesis.request_plan import Draws\n"
        "from medssr_dist.data.records import Question\nE = namedtuple('E', 'id name')\n"
        "seeds = [Question.make(f'Vignette {n}?', ['Gout', 'Lupus'], source='t') for n in range(20)]\n"
        "d = Draws(42, 0.5, seeds, [E(f'{n}', f'Disease {n}') for n in range(30)], entity_choice='coverage')\n"
        "print([(r.rho, r.seeds[0].stem, r.seeds[1].stem, r.entity and r.entity.name) for r in map(d.draw, range(50))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = draws(seeds=[seed(n) for n in range(20)], entity_choice="coverage")
    shown = [(r.rho, r.seeds[0].stem, r.seeds[1].stem, r.entity and r.entity.name) for r in map(here.draw, range(50))]
    assert done.stdout.strip() == str(shown)


@pytest.mark.parametrize("policy", POLICIES)
def test_alpha_is_the_share_injected_and_changes_nothing_else(policy):
    low, high = draws(0.2, **policy), draws(0.8, **policy)
    pairs = [(low.draw(index), high.draw(index)) for index in range(2000)]
    assert all((one.rho, one.seeds, one.topic) == (other.rho, other.seeds, other.topic) for one, other in pairs)
    assert all((one.entity is not None) == (one.rho < 0.2) for one, _ in pairs)
    assert 0.77 < sum(other.entity is not None for _, other in pairs) / 2000 < 0.83
    if policy["entity_choice"] == "uniform":
        assert all(one.entity is None or one.entity == other.entity for one, other in pairs)


def test_alpha_0_needs_no_entity_and_alpha_1_always_injects():
    assert all(draws(0.0, entities=[]).draw(index).entity is None for index in range(50))
    assert all(draws(1.0).draw(index).entity for index in range(50))


def test_pairs_are_two_seeds_and_every_pair_comes():
    all_pairs = draws(seeds=SEEDS[:4])
    pairs = Counter(tuple(one.stem for one in all_pairs.draw(index).seeds) for index in range(2400))
    assert len(pairs) == 12 and all(one != other for one, other in pairs)
    assert min(pairs.values()) > 120
    assert all_pairs.draw(0).topic == ""


def test_seed_pairs_share_a_topic_drawn_by_its_number_of_seeds():
    seeds = [seed(n, "common") for n in range(6)] + [seed(n, "small") for n in range(6, 9)] + [seed(9, "alone")]
    by_topic = draws(seeds=seeds, seed_pairs="topic")
    drawn = [by_topic.draw(index) for index in range(3000)]
    assert all(one.seeds[0].topic == one.seeds[1].topic == one.topic and one.seeds[0] != one.seeds[1] for one in drawn)
    topics = Counter(one.topic for one in drawn)
    assert set(topics) == {"common", "small"} and 0.62 < topics["common"] / 3000 < 0.71


def test_seeds_without_topic_are_refused_with_the_fix():
    with pytest.raises(InputError, match=r"2 of 5 seeds have no topic.*seed_pairs: uniform"):
        draws(seeds=[*SEEDS[:3], seed(98), seed(99)], seed_pairs="topic")
    with pytest.raises(InputError, match="no two seeds share a topic"):
        draws(seeds=SEEDS[:3], seed_pairs="topic")


def test_coverage_draws_all_entities_nearly_equally_often():
    covered, uniform = draws(1.0, entity_choice="coverage"), draws(1.0)
    times = [Counter(policy.draw(index).entity.id for index in range(3000)) for policy in (covered, uniform)]
    spread = [max(one.values()) - min(one.values()) for one in times]
    assert set(times[0]) == {entity.id for entity in ENTITIES}
    assert spread[0] < 0.7 * spread[1]


def test_coverage_has_the_weights_it_states():
    """The second of two draws over 3 entities has weight 1/2 for the first, 1 for the others: 1/5 are repeated."""
    again = 0
    for random_seed in range(4000):
        policy = draws(1.0, random_seed, entities=ENTITIES[:3], entity_choice="coverage")
        again += policy.draw(0).entity == policy.draw(1).entity
    assert 0.18 < again / 4000 < 0.22


@given(st.integers(0, 2**40), st.integers(-5, 2**40))
def test_draws_stay_in_range(index, random_seed):
    drawn = draws(1.0, random_seed).draw(index)
    assert 0 <= drawn.rho < 1 and drawn.index == index and drawn.seeds[0] != drawn.seeds[1]
