"""Advantages within groups of answers to one question. The groups of a batch may differ in size."""

from __future__ import annotations

from typing import NamedTuple

import torch

from medssr_dist.kernels import backends, checks

MODES = ("group_norm", "mean_only", "rloo")


class GroupAdvantage(NamedTuple):
    """Advantages of N rewards in B groups.

    advantage [N]; std [B], with Bessel's correction; zero_variance [B], bool: all rewards of the group are equal.

    >>> group_advantage(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 2, 4]), mode="mean_only")
    GroupAdvantage(advantage=tensor([ 0.5000, -0.5000,  0.0000,  0.0000]), std=tensor([0.7071, 0.0000]),
                   zero_variance=tensor([False,  True]))
    """

    advantage: torch.Tensor
    std: torch.Tensor
    zero_variance: torch.Tensor


def group_advantage(
    rewards: torch.Tensor,
    offsets: torch.Tensor,
    *,
    mode: str = "group_norm",
    epsilon: float = 1e-9,
    backend: str | None = None,
) -> GroupAdvantage:
    """Return the advantage of each reward [N] within its group. Group b is rewards[offsets[b]:offsets[b+1]].

    Equal rewards, and the reward of a group of one, have an advantage of exactly 0.

    Args:
        offsets: [B+1], integers. On the CPU their values are checked by the host; see checks.py.
        mode: "group_norm": (r - mean) / (std + epsilon), the form of GRPO (https://arxiv.org/abs/2402.03300) in
            OpenRLHF. "mean_only": r - mean (Dr. GRPO, https://arxiv.org/abs/2503.20783). "rloo": r - mean of the
            group's other rewards (https://arxiv.org/abs/2402.14740).

    Raises:
        ValueError: unknown mode; a wrong shape or dtype; offsets that are not those of N rewards; an empty group.
    """
    checks.require(mode in MODES, f"mode must be one of {MODES}, not {mode!r}")
    checks.require_floating("rewards", rewards)
    checks.require(rewards.dim() == 1, f"{checks.describe('rewards', rewards)}: must be [N]")
    checks.require_offsets(offsets, rewards.numel(), unit="group", allow_empty=False)
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32)).contiguous()
    bounds = offsets.to(device=rewards.device, dtype=torch.int64, non_blocking=offsets.is_cpu)
    operations = backends.select_operations(backend, rewards)
    return GroupAdvantage(*operations.group_advantage(rewards, bounds, mode, epsilon))
