"""A step at which rollout engines and training forward disagree is warned of, once until they agree again."""

from __future__ import annotations

import logging

import pytest

from medssr_dist.training.mismatch import MismatchWatch

CLOSE = {"rollout_kl": 0.002, "rollout_beyond_2x": 0.001, "rollout_ratio_max": 5.0, "policy_lag": 0.0}


def watch(caplog, *steps, dtype="bfloat16"):
    """Return the messages after each step."""
    caplog.set_level(logging.INFO)
    meter = MismatchWatch("stage1", dtype)
    for number, values in enumerate(steps, start=1):
        meter.check(number, CLOSE | values)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("values", [{"rollout_kl": 0.3}, {"rollout_kl": -0.3}, {"rollout_beyond_2x": 0.1}])
def test_a_mismatch_is_told_once_until_it_is_over(caplog, values):
    begins, ends = watch(caplog, {}, values, values, {}, {})
    assert begins.startswith("stage1 step 2: the rollout engines' probabilities differ")
    assert "training.stage1.importance=token" in begins and "the largest 5" in begins
    assert ends.startswith("stage1 step 4: the probabilities are close again")


@pytest.mark.parametrize("values", [{}, {"rollout_kl": 0.3, "policy_lag": 1.0}, {"rollout_kl": None}])
def test_what_is_no_mismatch_is_not_told(caplog, values):
    assert watch(caplog, values) == []


def test_in_float32_the_smallest_difference_counts(caplog):
    """One output head that kept its old weights gave 1.02 after one step, and 1.00002 where all had arrived."""
    equal = {"rollout_kl": 2e-7, "rollout_beyond_2x": 0.0, "rollout_ratio_max": 1.00002}
    stale = equal | {"rollout_kl": 2.6e-5, "rollout_ratio_max": 1.02}
    (begins,) = watch(caplog, equal, stale, stale, dtype="float32")
    assert begins.startswith("stage1 step 2") and "compares all weights" in begins
    caplog.clear()
    assert watch(caplog, equal, stale) == []


def test_each_sync_compares_all_weights_while_they_are_far_apart():
    meter = MismatchWatch("stage1", "bfloat16")
    far = CLOSE | {"rollout_kl": 0.3}
    found = [meter.check(step, values) for step, values in enumerate((CLOSE, far, far, CLOSE))]
    assert found == [False, True, True, False]
