"""Drawing ahead of flat groups: enough prompts at once, no group lost, the same batches on any engines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_parts import SAMPLING, Engines, draw_batches, send_weights
from stream_parts import example, make_prompts

from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.over_draw import FlatShare
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler

FLAT = st.sets(st.integers(0, 40), max_size=25)


class VersionedEngines(Engines):
    """Engines whose samples carry the number of batches that the sampler has made."""

    def __init__(self, flat, order: int = 0):
        super().__init__(flat, order)
        self.sampled: list[int] = []

    def next_group(self):
        group = super().next_group()
        self.sampled.append(group.number)
        return group


def make(engines, steps=0, prompts=3, examples=40, ahead=0, max_lag=1) -> Sampler:
    listed = [example(number) for number in range(examples)]
    loader = PromptLoader(lambda start: enumerate(listed[start:], start + 1), make_prompts(), 10**6)
    plan = BatchPlan(prompts, steps, True, ahead, over_draw=True, max_lag=max_lag)
    return Sampler(plan, SAMPLING, loader, engines, lambda doing: None)


def draw_with_versions(sampler: Sampler, engines: Engines) -> list[list[int]]:
    """Draw all batches, with new weights after each; return the numbers of their prompts."""
    found = []
    while step := sampler.next_step():
        found.append([int(sample.prompts[0].split()[1]) for sample in step.samples[:: SAMPLING.n]])
        send_weights(sampler, engines)
    return found


def test_the_draws_follow_the_share_of_flat_groups():
    assert FlatShare().count_draws(64, most=256) == 64  # nothing seen yet
    assert FlatShare(42, 100).count_draws(64, most=256) == 129
    assert FlatShare(42, 100).count_draws(64, most=100) == 100
    assert FlatShare(9, 9).count_draws(64, most=256) == 256  # all flat: as many as a batch may draw
    share = FlatShare()
    share.add(flat=5, sampled=10)
    share.add(flat=10, sampled=10)
    assert share.share == pytest.approx(14 / 18)  # the last batch counts most


def test_surplus_groups_begin_the_next_batch():
    engines = VersionedEngines({0, 2, 4, 6})
    sampler = make(engines, steps=4)
    assert sampler.next_step().metrics["groups_carried"] == 0  # 6 prompts; half of them are flat
    engines.version = 1
    second = sampler.next_step()
    assert [sample.prompts[0].split()[1] for sample in second.samples[::2]] == ["7", "8", "9"]
    assert second.metrics["groups_carried"] == 7  # 11 were drawn: 3 / 0.5, and a margin
    third = sampler.next_step()
    assert [sample.prompts[0].split()[1] for sample in third.samples[::2]] == ["10", "11", "12"]
    assert third.metrics["prompts_drawn"] == 0 and third.metrics["policy_lag"] == 1
    assert "zero_variance_drawn" not in third.metrics  # nothing was sampled


def test_a_group_of_too_old_weights_is_sampled_again():
    engines = VersionedEngines({0, 2, 4, 6})
    sampler = make(engines, steps=5)
    for _ in range(3):
        sampler.next_step()
        engines.version = sampler.returned
    step = sampler.next_step()  # two groups are left of the second batch
    numbers = [int(sample.prompts[0].split()[1]) for sample in step.samples[:: SAMPLING.n]]
    assert numbers[:2] == [13, 14] and engines.sampled.count(13) == engines.sampled.count(14) == 2
    assert step.metrics["policy_lag"] == 0


@settings(deadline=None, max_examples=20)
@given(flat=FLAT, orders=st.tuples(st.integers(), st.integers()), steps=st.integers(0, 6))
def test_over_drawn_batches_do_not_depend_on_the_engines(flat, orders, steps):
    made = [VersionedEngines(flat, order) for order in orders]
    one, other = (draw_with_versions(make(engines, steps), engines) for engines in made)
    assert one == other and all(len(batch) == 3 for batch in one)
    assert not steps or len(one) == steps


@settings(deadline=None, max_examples=20)
@given(flat=FLAT, order=st.integers())
def test_one_pass_trains_on_every_group_with_variance_once(flat, order):
    engines = VersionedEngines(flat, order)
    trained = [number for batch in draw_with_versions(make(engines), engines) for number in batch]
    varied = [number for number in range(40) if number not in flat]
    trained = [number for number in trained if number not in flat]  # a batch draws four times its prompts at most
    assert trained[: len(varied)] == varied  # in their order; the rest fills the last batch


@settings(deadline=None, max_examples=20)
@given(flat=FLAT, stop=st.integers(0, 5), ahead=st.integers(0, 3))
def test_a_stopped_stage_resumes_with_its_carried_groups(flat, stop, ahead):
    whole = draw_batches(make(VersionedEngines(flat), steps=5, ahead=ahead, max_lag=8))
    first = make(VersionedEngines(flat), steps=5, ahead=ahead, max_lag=8)
    for _ in range(stop):
        first.next_step()
        send_weights(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = make(VersionedEngines(flat), steps=5, ahead=ahead, max_lag=8)
    second.load_state_dict(state)
    assert draw_batches(second) == whole[stop:]


def test_groups_of_an_interrupted_batch_stay_carried():
    engines = VersionedEngines({0, 2, 4, 6})
    sampler = make(engines, steps=9)
    sampler.next_step()
    sampler.next_step()
    state = json.dumps(sampler.state_dict())
    engines.version = 8  # all carried groups are too old
    sampler._maker.made = 8
    engines.next_group = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        sampler.next_step()
    sampler._maker.made = 2
    assert json.dumps(sampler.state_dict()) == state
