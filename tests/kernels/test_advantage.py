"""Group advantages: ragged groups, three modes, exact zeros."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BACKENDS

from medssr_dist.kernels import group_advantage, reference
from medssr_dist.kernels.group_advantage import MODES

GROUPS = st.lists(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=9), min_size=1, max_size=5)


def flat(groups):
    lengths = torch.tensor([len(group) for group in groups])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.tensor([reward for group in groups for reward in group]), offsets


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=30)
@given(groups=GROUPS)
def test_any_groups(mode, backend, groups):
    rewards, offsets = flat(groups)
    result = group_advantage(rewards, offsets, mode=mode, epsilon=0.1, backend=backend)
    expected = [value for group in reference.group_advantage(groups, mode, epsilon=0.1) for value in group]
    torch.testing.assert_close(result.advantage, torch.tensor(expected), rtol=1e-5, atol=2e-5)
    assert result.zero_variance.tolist() == [len(set(group)) == 1 for group in groups]
    stds = [torch.tensor(group).double().std().float() if len(set(group)) > 1 else torch.zeros(()) for group in groups]
    torch.testing.assert_close(result.std, torch.stack(stds), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e7 + 1, -1e-20])
def test_equal_rewards_give_exactly_zero(reward, mode, backend):
    rewards, offsets = flat([[reward] * 7, [reward], [0.0, 1.0], [reward] * 130])
    result = group_advantage(rewards, offsets, mode=mode, backend=backend)
    assert result.zero_variance.tolist() == [True, True, False, True]
    assert not result.advantage[:8].any() and not result.advantage[10:].any()
    assert bool(result.advantage[8:10].abs().gt(0.4).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_is_openrlhf_s_formula(backend):
    rewards = torch.rand(4, 8).round()
    rewards[:, 0], rewards[:, 1] = 0, 1
    expected = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-9)
    result = group_advantage(rewards.view(-1), torch.arange(0, 33, 8), backend=backend)
    torch.testing.assert_close(result.advantage.view(4, 8), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_groups(backend):
    result = group_advantage(torch.empty(0), torch.zeros(1, dtype=torch.int64), backend=backend)
    assert [part.numel() for part in result] == [0, 0, 0]


def test_integer_halves_and_float64():
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    assert group_advantage(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), offsets).advantage.dtype == torch.float32
    assert group_advantage(torch.tensor([0.0, 1.0], dtype=torch.float64), offsets).advantage.dtype == torch.float64
