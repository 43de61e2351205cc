"""The slow-moving teacher of `voting.online`: its average, the swap of weights, its checkpoint, and a whole stage."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from config_builder import make_config
from pydantic import ValidationError

from medssr_dist.errors import InputError
from medssr_dist.training.weights.teacher import Teacher


class ShardedPolicy(torch.nn.Module):
    """Two weights, the second one frozen, each with its shard as DeepSpeed keeps it."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.trained, self.frozen = (torch.nn.Parameter(torch.zeros(0), requires_grad=on) for on in (True, False))
        self.trained.ds_tensor = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        self.frozen.ds_tensor = torch.tensor([7.0], dtype=dtype)


def test_the_average_follows_the_policy():
    policy = ShardedPolicy()
    teacher = Teacher(policy, 0.75)
    for _ in range(2):
        policy.trained.ds_tensor += 4
        teacher.follow()
    # 1 -> 0.75 x 1 + 0.25 x 5 = 2 -> 0.75 x 2 + 0.25 x 9 = 3.75
    torch.testing.assert_close(teacher.average, {"trained": torch.tensor([3.75, 4.75, 5.75])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
def test_the_policys_weights_come_back_bit_for_bit(dtype, fails):
    policy = ShardedPolicy(dtype)
    teacher = Teacher(policy, 0.5)
    policy.trained.ds_tensor.mul_(0.1)
    before, place = policy.trained.ds_tensor.clone(), policy.trained.ds_tensor.data_ptr()
    with pytest.raises(RuntimeError) if fails else nullcontext(), teacher.in_place():
        assert policy.trained.ds_tensor.tolist() == [1, 2, 3] and policy.frozen.ds_tensor.tolist() == [7]
        if fails:
            raise RuntimeError("an engine died")
    assert torch.equal(policy.trained.ds_tensor, before) and policy.trained.ds_tensor.data_ptr() == place


def test_steps_too_small_for_bfloat16_are_averaged():
    policy = ShardedPolicy(torch.bfloat16)
    teacher = Teacher(policy, 0.999)
    policy.trained.ds_tensor += 1
    for _ in range(100):
        teacher.follow()
    torch.testing.assert_close(teacher.average["trained"][0].item(), 2 - 0.999**100, rtol=1e-4, atol=0)


def test_a_checkpoint_continues_the_average():
    policy = ShardedPolicy()
    stored = {"trained": torch.tensor([5.0, 5.0, 5.0])}
    teacher = Teacher(policy, 0.5, stored)
    teacher.follow()
    assert teacher.average["trained"].tolist() == [3, 3.5, 4]


@pytest.mark.parametrize("stored", [{}, {"trained": torch.zeros(2)}, {"other": torch.zeros(3)}])
def test_a_checkpoint_without_this_ranks_part_is_refused(stored):
    with pytest.raises(InputError, match=r"voting\.online\.teacher: the checkpoint has no teacher for these ranks"):
        Teacher(ShardedPolicy(), 0.5, stored)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_outside_of_0_to_1_is_refused(decay):
    with pytest.raises(ValidationError, match="teacher"):
        make_config(voting={"online": {"every": 2, "teacher": decay}})


def test_second_copies_of_the_shards_are_refused():
    with pytest.raises(ValidationError, match=r"set training\.hpz=false, or voting\.online\.teacher=null"):
        make_config(voting={"online": {"every": 2, "teacher": 0.9}}, training={"hpz": True})
