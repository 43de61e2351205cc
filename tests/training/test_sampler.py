"""Batches depend on the order of the prompts alone, have one size and lose nothing; what a checkpoint holds of them."""

from __future__ import annotations

import json
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_parts import Tokenizer, example

from medssr_dist.run.stream import ALL_TAKEN
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler

SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, max_tokens=4, logprobs=True, random_seed=3)


class Pool:
    """Answers in any order; the prompts numbered in `flat` (modulo `cycle`) get equal rewards."""

    restarts = 0

    def __init__(self, flat, order: int = 0, cycle: int = 10**9):
        self._flat, self._rng, self._cycle, self._open = flat, random.Random(order), cycle, []
        self.version = 0
        self.hold = threading.Event()
        self.hold.set()

    def give(self, request: GroupRequest) -> None:
        self._open.append(request)

    def take(self) -> Group:
        self.hold.wait()
        request = self._open.pop(self._rng.randrange(len(self._open)))
        rewards = [0.0, float(request.number % self._cycle not in self._flat)]
        samples = [Sample([7, 8], [-1.0, -2.0], reward, False, False, self.version) for reward in rewards]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)


class Ids(Tokenizer):
    """Words as numbers."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [len(word) for word in text.split()]}


def sampler(pool, examples=8, prompts=2, steps=0, drop=True, ahead=False, taken=None) -> Sampler:
    listed = [example(number) for number in range(examples)]
    tell = taken.append if taken is not None else lambda count: None
    loader = PromptLoader(lambda start: enumerate(listed[start:], start + 1), Ids(), 10**6, tell)
    found = Sampler(BatchPlan(prompts, steps, drop, ahead), SAMPLING, loader, Ids(), pool, lambda doing: None)
    found.loader = loader
    return found


def batches(made: Sampler) -> list[list[int]]:
    """The prompts of each batch, by the N of 'Question N'."""
    found = []
    while step := made.next_step():
        found.append([int(sample.prompts[0].split()[1]) for sample in step.samples[:: SAMPLING.n]])
    return found


def test_without_dropping_batches_are_the_prompts_in_order():
    assert batches(sampler(Pool({0, 3}), drop=False)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batches(sampler(Pool(set()), examples=5, drop=False)) == [[0, 1], [2, 3], [4, 0]]
    assert batches(sampler(Pool(set()), steps=3, examples=5, drop=False)) == [[0, 1], [2, 3], [4, 0]]


def test_groups_without_variance_are_replaced_by_the_next():
    assert batches(sampler(Pool({1, 2, 5}))) == [[0, 3], [4, 6], [7, 0]]


def test_at_the_end_no_group_with_variance_is_lost():
    """The last batch is filled up from the beginning; its own groups are all in it."""
    assert batches(sampler(Pool({1, 3, 5}, cycle=8), examples=6)) == [[0, 2], [4, 0]]


def test_a_policy_without_variance_does_not_wait_for_ever():
    made = sampler(Pool(set(range(100))), steps=4)
    metrics = made.next_step().metrics
    assert batches(made) == [[0, 1]] * 3  # 8 prompts each, and the first two of them kept
    assert metrics["zero_variance_drawn"] == 1.0 and metrics["prompts_drawn"] == 8


def test_the_share_without_variance_is_of_all_drawn():
    made = sampler(Pool({1, 2}))
    step = made.next_step()
    assert (step.drawn, len(step.samples)) == (4, 2 * SAMPLING.n)
    assert step.metrics["zero_variance_drawn"] == 0.5


@given(flat=st.sets(st.integers(0, 40)), orders=st.tuples(st.integers(), st.integers()), steps=st.integers(0, 6))
def test_batches_do_not_depend_on_which_engine_is_faster(flat, orders, steps):
    one, other = (batches(sampler(Pool(flat, order), steps=steps, prompts=3)) for order in orders)
    assert one == other
    assert all(len(batch) == 3 for batch in one)
    assert not steps or len(one) == steps


@given(flat=st.sets(st.integers(0, 40)), stop=st.integers(0, 5), ahead=st.booleans())
def test_a_restart_resumes_with_the_very_next_batch(flat, stop, ahead):
    """Also if the next batch was made ahead already."""
    whole = batches(sampler(Pool(flat), steps=5, prompts=3, ahead=ahead))
    first = sampler(Pool(flat), steps=5, prompts=3, ahead=ahead)
    for _ in range(stop):
        first.next_step()
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler(Pool(flat), steps=5, prompts=3, ahead=ahead)
    second.load_state_dict(state)
    assert second.given == stop
    assert batches(second) == whole[stop:]


def test_the_vote_learns_that_no_more_is_taken():
    taken = []
    made = sampler(Pool({1}), steps=1, taken=taken)
    made.next_step()
    assert taken == [0, 1, 2, 3, ALL_TAKEN]  # before the last batch is trained on
    taken = []
    again = sampler(Pool({1}), steps=1, taken=taken)
    again.load_state_dict(made.state_dict())
    assert again.next_step() is None and taken == [ALL_TAKEN]


def test_a_batch_made_ahead_is_one_step_behind():
    pool = Pool(set())
    made = sampler(pool, steps=3, ahead=True)
    lags = []
    while step := made.next_step():
        lags.append(step.metrics["policy_lag"])
        made.finish()  # what the weight sync does first
        pool.version = made.given
    assert lags == [0, 1, 1]


def test_without_ahead_there_is_no_lag():
    pool = Pool(set())
    made = sampler(pool, steps=3)
    lags = []
    while step := made.next_step():
        lags.append(step.metrics["policy_lag"])
        pool.version = made.given
    assert lags == [0, 0, 0]


def test_the_next_batch_is_made_during_training():
    pool = Pool(set())
    made = sampler(pool, steps=2, ahead=True)
    made.next_step()
    made.finish()
    pool.hold.clear()
    made.next_step()  # the second is there, and a third is not asked for
    pool.hold.set()
    assert batches(made) == []


def test_an_engine_admitted_meanwhile_waits_for_the_ranks():
    """The thread that makes the next batch gets `ranks_free` after the step's training, not before."""
    order, pool = [], Pool(set())
    made = sampler(pool, steps=2, ahead=True)
    take = pool.take

    def take_after_admission():
        pool.hold.wait()
        with made.ranks_free:
            order.append("admitted")
        return take()

    pool.hold.clear()
    pool.take = take_after_admission
    threading.Timer(0.1, pool.hold.set).start()  # the first batch is made in step
    made.next_step()
    assert order == ["admitted"] * 2
    order.append("trained")
    made.finish()
    assert order == ["admitted"] * 2 + ["trained"] + ["admitted"] * 2


def test_a_failure_in_making_ahead_comes_at_the_next_step():
    pool = Pool(set())
    made = sampler(pool, steps=2, ahead=True)
    made.next_step()
    made.finish()
    pool.take = lambda: 1 / 0
    made = sampler(pool, steps=2, ahead=True)
    with pytest.raises(ZeroDivisionError):
        made.next_step()


def test_an_interrupted_batch_gives_its_prompts_back():
    """So a stage that is asked to stop while it waits for labels loses none of them."""
    for ahead in (False, True):
        pool = Pool(set())
        made = sampler(pool, ahead=ahead)
        made.next_step()
        made.finish()
        state, left = made.loader.state_dict(), made.state_dict()["batches"]["left"]
        pool.take = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            [made.next_step() and made.finish() for _ in range(2)]
        assert made.loader.state_dict() == state
        assert len(made.state_dict()["batches"]["left"]) == 0 == len(left) - ahead


def test_seeds_depend_on_the_run_and_the_prompt():
    def seed(number, random_seed):
        sampling = Sampling(**vars(SAMPLING) | {"random_seed": random_seed})
        return GroupRequest(number, "p", [1], "{}", sampling).seed

    seeds = {seed(number, run) for number in range(50) for run in range(3)}
    assert len(seeds) == 150 and max(seeds) < 2**48
    assert seed(4, 2) == seed(4, 2)


def test_an_experience_is_what_openrlhf_reads():
    samples = [Sample([7, 8, 2], [-0.5, -1.5, -2.5], 1.0, False, True, 4), Sample([9], None, 0.0, True, False, 5)]
    group = Group(0, "prompt", [3, 4], "label", samples)
    first, second = group.experiences(version=6)
    assert first.sequences.tolist() == [[3, 4, 7, 8, 2]]
    assert first.attention_mask.tolist() == [[1] * 5]
    assert first.action_mask.tolist() == [[0, 1, 1, 1]]
    assert first.rollout_log_probs.tolist() == [[0.0, -0.5, -1.5, -2.5]]
    assert second.rollout_log_probs is None
    assert [each.info["policy_lag"].item() for each in (first, second)] == [2, 1]
    assert [each.rewards.item() for each in (first, second)] == [1, 0]
    assert (first.response_length.item(), first.truncated.item(), second.info["invalid_answer"].item()) == (3, True, 1)
    assert (first.prompts, first.labels) == (["prompt"], ["label"])
