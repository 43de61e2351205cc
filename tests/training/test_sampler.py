"""Batches depend only on the order of the prompts, have one size and lose nothing, also over a restart."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampler_parts import SAMPLING, Engines, draw_batches, send_weights
from stream_parts import example, make_prompts

from medssr_dist.run.stream import ALL_TAKEN
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler


def make_sampler(engines, examples=8, prompts=2, steps=0, drop=True, ahead=0, taken=None) -> Sampler:
    listed = [example(number) for number in range(examples)]
    on_taken = taken.append if taken is not None else lambda count: None
    loader = PromptLoader(lambda start: enumerate(listed[start:], start + 1), make_prompts(), 10**6, on_taken)
    found = Sampler(BatchPlan(prompts, steps, drop, ahead), SAMPLING, loader, engines, lambda doing: None)
    found.loader = loader
    return found


def test_without_dropping_batches_are_prompts_in_order():
    assert draw_batches(make_sampler(Engines({0, 3}), drop=False)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert draw_batches(make_sampler(Engines(set()), examples=5, drop=False)) == [[0, 1], [2, 3], [4, 0]]
    assert draw_batches(make_sampler(Engines(set()), steps=3, examples=5, drop=False)) == [[0, 1], [2, 3], [4, 0]]


def test_groups_without_variance_are_replaced():
    assert draw_batches(make_sampler(Engines({1, 2, 5}))) == [[0, 3], [4, 6], [7, 0]]


def test_the_last_batch_keeps_all_groups_with_variance():
    """It is filled up from the beginning of the data."""
    assert draw_batches(make_sampler(Engines({1, 3, 5}, cycle=8), examples=6)) == [[0, 2], [4, 0]]


def test_a_policy_without_variance_still_gets_batches():
    made = make_sampler(Engines(set(range(100))), steps=4)
    metrics = made.next_step().metrics
    assert draw_batches(made) == [[0, 1]] * 3  # 8 prompts are drawn for each, and the first two kept
    assert metrics["zero_variance_drawn"] == 1.0 and metrics["prompts_drawn"] == 8


def test_the_health_of_the_votes_is_of_all_drawn_groups():
    made = make_sampler(Engines({1, 2}))
    metrics = made.next_step().metrics
    assert (metrics["majority_agreement"], metrics["unanimous"]) == (0, 0)  # these answers name no option
    assert (metrics["vote_entropy"], metrics["drawn_length"], metrics["drawn_truncated"]) == (None, 2, 0)


def test_the_early_end_of_a_stage_is_reported_to_the_vote():
    taken = []
    made = make_sampler(Engines({1}), taken=taken)
    made.next_step()
    made.end()
    assert taken[-1] == ALL_TAKEN


def test_share_without_variance_is_of_all_drawn_groups():
    made = make_sampler(Engines({1, 2}))
    step = made.next_step()
    assert (step.drawn, len(step.samples)) == (4, 2 * SAMPLING.n)
    assert step.metrics["zero_variance_drawn"] == 0.5


@given(flat=st.sets(st.integers(0, 40)), orders=st.tuples(st.integers(), st.integers()), steps=st.integers(0, 6))
def test_batches_do_not_depend_on_the_speed_of_engines(flat, orders, steps):
    one, other = (draw_batches(make_sampler(Engines(flat, order), steps=steps, prompts=3)) for order in orders)
    assert one == other
    assert all(len(batch) == 3 for batch in one)
    assert not steps or len(one) == steps


@given(flat=st.sets(st.integers(0, 40)), stop=st.integers(0, 5), ahead=st.integers(0, 3))
def test_a_restart_resumes_with_the_next_batch(flat, stop, ahead):
    """Also if the next batch has been made ahead."""
    whole = draw_batches(make_sampler(Engines(flat), steps=5, prompts=3, ahead=ahead))
    first = make_sampler(Engines(flat), steps=5, prompts=3, ahead=ahead)
    for _ in range(stop):
        first.next_step()
        send_weights(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = make_sampler(Engines(flat), steps=5, prompts=3, ahead=ahead)
    second.load_state_dict(state)
    assert second.returned == stop
    assert draw_batches(second) == whole[stop:]


def test_the_end_of_drawing_is_reported_to_the_vote():
    taken = []
    made = make_sampler(Engines({1}), steps=1, taken=taken)
    made.next_step()
    assert taken == [0, 1, 2, 3, ALL_TAKEN]  # reported before the last batch is trained on
    taken = []
    again = make_sampler(Engines({1}), steps=1, taken=taken)
    again.load_state_dict(made.state_dict())
    assert again.next_step() is None and taken == [ALL_TAKEN]


def test_a_batch_made_ahead_is_one_step_behind():
    engines = Engines(set())
    made = make_sampler(engines, steps=3, ahead=1)
    lags = []
    while step := made.next_step():
        lags.append(step.metrics["policy_lag"])
        send_weights(made, engines)
    assert lags == [0, 1, 1]


def test_without_batches_made_ahead_there_is_no_lag():
    engines = Engines(set())
    made = make_sampler(engines, steps=3)
    lags = []
    while step := made.next_step():
        lags.append(step.metrics["policy_lag"])
        send_weights(made, engines)
    assert lags == [0, 0, 0]


def test_the_next_batch_is_made_during_training():
    engines = Engines(set())
    made = make_sampler(engines, steps=2, ahead=1)
    made.next_step()
    send_weights(made)
    engines.hold.clear()
    made.next_step()  # the second is ready, and no third is made
    engines.hold.set()
    assert draw_batches(made) == []


def test_a_restarted_engine_waits_for_the_ranks():
    """The thread that makes the next batch gets `ranks_free` after the training of the step, not before."""
    order, engines = [], Engines(set())
    made = make_sampler(engines, steps=2, ahead=1)
    next_group = engines.next_group

    def send_weights_first():
        engines.hold.wait()
        with made.ranks_free:
            order.append("weights sent")
        return next_group()

    engines.next_group = send_weights_first
    made._plan = replace(made._plan, ahead=0)
    made.next_step()  # makes its batch itself
    made._plan = replace(made._plan, ahead=1)
    assert order == ["weights sent"] * 2
    threading.Timer(0.1, lambda: order.append("trained") or send_weights(made)).start()
    made._training = False
    made.ranks_free.release()
    with made.ranks_free:
        thread = threading.Thread(target=made._make_ahead, daemon=True)
        thread.start()
        time.sleep(0.2)
        assert order == ["weights sent"] * 2 + ["trained"]
    thread.join()
    assert order == ["weights sent"] * 2 + ["trained"] + ["weights sent"] * 2


def test_an_error_in_making_ahead_is_raised_by_next_step():
    engines = Engines(set())
    made = make_sampler(engines, steps=2, ahead=1)
    engines.next_group = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.next_step()


def test_prompts_of_an_interrupted_batch_are_drawn_again():
    """So a stage that is stopped while it waits for labels loses none of them."""
    for ahead in (0, 1):
        engines = Engines(set())
        made = make_sampler(engines, ahead=ahead)
        made.next_step()
        send_weights(made)
        state, left = made.loader.state_dict(), made.state_dict()["batches"]["left"]
        engines.next_group = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            for _ in range(9):
                made.next_step()
                send_weights(made)
        found = made.state_dict()
        assert found["batches"]["made"] - found["batches"]["given"] == len(found["batches"]["left"])
        assert ahead or (made.loader.state_dict() == state and not left)


def test_seeds_depend_on_the_run_and_the_prompt():
    def seed(number, random_seed):
        sampling = Sampling(**vars(SAMPLING) | {"random_seed": random_seed})
        return GroupRequest(number, "p", [1], "{}", sampling).seed

    seeds = {seed(number, run) for number in range(50) for run in range(3)}
    assert len(seeds) == 150 and max(seeds) < 2**48
    assert seed(4, 2) == seed(4, 2)


def test_experiences_have_the_fields_that_openrlhf_reads():
    samples = [Sample([7, 8, 2], [-0.5, -1.5, -2.5], 1.0, False, True, 4), Sample([9], None, 0.0, True, False, 5)]
    group = Group(0, "prompt", [3, 4], "label", samples)
    first, second = group.make_experiences(version=6)
    assert first.sequences.tolist() == [[3, 4, 7, 8, 2]]
    assert first.attention_mask.tolist() == [[1] * 5]
    assert first.action_mask.tolist() == [[0, 1, 1, 1]]
    assert first.rollout_log_probs.tolist() == [[0.0, -0.5, -1.5, -2.5]]
    assert second.rollout_log_probs is None
    assert [each.info["policy_lag"].item() for each in (first, second)] == [2, 1]
    assert [each.rewards.item() for each in (first, second)] == [1, 0]
    assert (first.response_length.item(), first.truncated.item(), second.info["invalid_answer"].item()) == (3, True, 1)
    assert (first.prompts, first.labels) == (["prompt"], ["label"])
