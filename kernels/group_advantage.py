"""Advantages of a group of answers to one question, groups of any sizes side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch

from medssr_dist.kernels import backends, checks

MODES = ("group_norm", "mean_only", "rloo")


class GroupAdvantage(NamedTuple):
    """advantage [N]; std [B], with Bessel's correction; zero_variance [B] bool: all rewards of the group are equal."""

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
    """Advantage of each reward [N] within its group; group b holds rewards[offsets[b]:offsets[b+1]], offsets [B+1].

    group_norm: (r - mean) / (std + epsilon), as OpenRLHF. mean_only: r - mean (Dr. GRPO). rloo: r - mean of the others.
    Equal rewards, and a group of one, give exactly 0. ValueError for an empty group.
    """
    checks.require(mode in MODES, f"mode must be one of {MODES}, not {mode!r}")
    checks.require_floating("rewards", rewards)
    checks.require(rewards.dim() == 1, f"{checks.describe('rewards', rewards)}: must be [N]")
    checks.require_offsets(offsets, rewards.numel(), unit="group", allow_empty=False)
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32)).contiguous()
    bounds = offsets.to(device=rewards.device, dtype=torch.int64)
    operations = backends.select_operations(backend, rewards)
    return GroupAdvantage(*operations.group_advantage(rewards, bounds, mode, epsilon))
