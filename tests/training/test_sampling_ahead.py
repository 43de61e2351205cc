"""Sampling ahead of the training: the bound of the lag, new weights during samples, and nothing lost by kills."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_parts import SAMPLING, Engines, send_weights
from stream_parts import example, make_prompts

from medssr_dist.training.rollout.batch_maker import BatchPlan
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.groups import Group, Sample
from medssr_dist.training.rollout.sampler import Sampler
from medssr_dist.training.rollout.token_versions import SampleVersions

FLAT = st.sets(st.integers(0, 60), max_size=30)


class InterruptedEngines(Engines):
    """New weights may come while a group is sampled: its first token is of the version when it was requested."""

    def __init__(self, flat, order: int = 0):
        super().__init__(flat, order)
        self._begun: dict[int, int] = {}

    def submit(self, request) -> None:
        self._begun[request.number] = self.version
        super().submit(request)

    def next_group(self) -> Group:
        group = super().next_group()
        first, last = self._begun.pop(group.number), self.version
        switches = [[1, last]] if last > first else []
        samples = [replace(sample, version=first, switches=switches) for sample in group.samples]
        return Group(group.number, group.prompt, group.prompt_ids, group.label, samples)


def make(engines, lag: int, over_draw=False, interrupts=True, steps=0, examples=60, prompts=3) -> Sampler:
    listed = [example(number) for number in range(examples)]
    loader = PromptLoader(lambda start: enumerate(listed[start:], start + 1), make_prompts(), 10**6)
    plan = BatchPlan(prompts, steps, True, lag - over_draw, over_draw, lag, interrupts)
    return Sampler(plan, SAMPLING, loader, engines, lambda doing: None)


def list_prompts(step) -> list[int]:
    return [int(sample.prompts[0].split()[1]) for sample in step.samples[:: SAMPLING.n]]


@settings(deadline=None, max_examples=15)
@given(
    flat=FLAT,
    order=st.integers(),
    lag=st.integers(1, 8),
    over_draw=st.booleans(),
    interrupts=st.booleans(),
)
def test_no_token_is_older_than_the_bound(flat, order, lag, over_draw, interrupts):
    engines = InterruptedEngines(flat, order)
    sampler = make(engines, lag, over_draw, interrupts, steps=9)
    for number in range(9):
        step = sampler.next_step()
        oldest = max(int(sample.info["policy_lag"]) for sample in step.samples)
        assert oldest == step.metrics["policy_lag_max"] <= min(lag, number)
        assert all(sample.info["versions"][:, 1].max() <= number for sample in step.samples)
        send_weights(sampler, engines)
    assert sampler.next_step() is None


@settings(deadline=None, max_examples=15)
@given(flat=FLAT, lag=st.integers(0, 8), over_draw=st.booleans(), data=st.data())
def test_kills_lose_and_double_no_prompt(flat, lag, over_draw, data):
    """A run is killed at any time, and goes on from its last checkpoint: its steps train on what they would have."""
    over_draw = over_draw and lag > 0
    trained: list[list[int]] = []
    state = None
    for _ in range(data.draw(st.integers(1, 4))):
        engines = InterruptedEngines(flat, data.draw(st.integers()))
        sampler = resume(make(engines, lag, over_draw), engines, state)
        del trained[sampler.returned :]
        save_every = data.draw(st.integers(1, 3))
        for _ in range(data.draw(st.integers(0, 6))):
            if (step := sampler.next_step()) is None:
                break
            trained.append(list_prompts(step))
            send_weights(sampler, engines)
            if len(trained) % save_every == 0:
                state = json.dumps(sampler.state_dict())
    sampler = resume(make(engines, lag, over_draw), engines, state)
    del trained[sampler.returned :]
    trained += train_all(sampler, engines)
    if not over_draw:  # its draws follow the share of flat groups, which counts groups that are sampled again
        assert trained == train_all(make(InterruptedEngines(flat), lag))
    varied = [number for number in range(60) if number not in flat]
    assert [number for batch in trained for number in batch if number not in flat][: len(varied)] == varied


def resume(sampler: Sampler, engines: Engines, state: str | None) -> Sampler:
    """Let a new sampler go on from a checkpoint, if there is one."""
    if state:
        sampler.load_state_dict(json.loads(state))
    engines.version = sampler.returned
    return sampler


def train_all(sampler: Sampler, engines: Engines | None = None) -> list[list[int]]:
    found = []
    while step := sampler.next_step():
        found.append(list_prompts(step))
        send_weights(sampler, engines)
    return found


def test_new_weights_do_not_wait_for_a_batch():
    engines = InterruptedEngines(set())
    sampler = make(engines, 1, steps=4)
    sampler.next_step()
    send_weights(sampler, engines)
    sampler.next_step()
    engines.hold.clear()  # the third batch is being sampled
    send_weights(sampler, engines)
    assert sampler.state_dict()["batches"]["given"] == 2
    engines.hold.set()
    third = sampler.next_step()
    assert third.metrics["policy_lag_max"] <= 1


def test_in_order_new_weights_wait_for_batches():
    engines = InterruptedEngines(set())
    sampler = make(engines, 2, interrupts=False, steps=6)
    lags = []
    while step := sampler.next_step():
        send_weights(sampler, engines)
        lags.append((step.metrics["policy_lag"], step.metrics["interrupted"]))
    assert lags == [(0, 0), (1, 0), (2, 0), (2, 0), (2, 0), (2, 0)]


def test_the_engines_are_at_most_the_bound_ahead():
    engines = InterruptedEngines(set())
    sampler = make(engines, 3)
    sampler.next_step()
    done = threading.Event()
    threading.Timer(0.2, done.set).start()
    done.wait()
    assert sampler.state_dict()["batches"]["made"] == 4  # those of the steps 1 to 4, with the weights of step 0


def test_the_mean_lag_is_of_tokens():
    sample = Sample([1, 2, 3, 4], None, 1.0, False, False, version=3, switches=[[1, 4], [3, 5]])
    assert sample.mean_lag(5) == (2 + 1 + 1 + 0) / 4
    assert Sample([], None, 1.0, False, False, version=3).mean_lag(5) == 2


def test_versions_of_tokens_follow_new_weights():
    versions = SampleVersions(4, 3)
    versions.finish(1)
    versions.interrupt({0: 5, 2: 2})  # sample 3 has not begun
    versions.go_on(4)
    versions.finish(2)
    versions.interrupt({0: 5, 3: 1})
    versions.go_on(6)
    assert versions.find(0, 9) == (3, [[5, 6]])  # version 4 has sampled none of its tokens
    assert versions.find(1, 4) == (3, [])
    assert versions.find(2, 7) == (3, [[2, 4]])
    assert versions.find(3, 2) == (4, [[1, 6]])


def test_a_sample_that_came_during_a_sync_is_of_new_weights():
    versions = SampleVersions(1, 3)
    versions.interrupt({})
    versions.go_on(4)
    assert versions.find(0, 2) == (4, [])


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_uninterrupted_sample_has_one_version(tokens):
    assert SampleVersions(1, 3).find(0, tokens) == (3, [])
