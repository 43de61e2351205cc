"""Optimizer states of checkpoints that another AdamW wrote, resumed by torch's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from medssr_dist.training.backend.optimizer_state import complete_optimizer_state


def take_step(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


@pytest.fixture
def weights() -> list[torch.Tensor]:
    return [torch.linspace(-1, 1, 12), torch.linspace(0, 3, 5)]


def make_torchs(weights: list[torch.Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0, fused=True)


def write_as_deepspeeds(optimizer: torch.optim.AdamW) -> dict:
    """Return the state as DeepSpeed's fused AdamW writes it: whole numbers of steps, other options of the groups."""
    saved = deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    kept = ("lr", "betas", "eps", "weight_decay", "params")
    saved["param_groups"] = [
        {name: group[name] for name in kept} | {"bias_correction": True, "step": 0} for group in saved["param_groups"]
    ]
    return saved


def test_a_state_of_deepspeeds_adamw_trains_on_in_torchs(weights):
    optimizer = make_torchs(weights)
    for seed in range(3):
        take_step(optimizer, weights, seed)
    copies = [weight.clone() for weight in weights]
    resumed = make_torchs(copies)
    resumed.load_state_dict(write_as_deepspeeds(optimizer))
    complete_optimizer_state(resumed)
    take_step(optimizer, weights, 9)
    take_step(resumed, copies, 9)
    assert resumed.param_groups[0]["fused"]
    for copy, weight in zip(copies, weights, strict=True):
        assert torch.equal(copy, weight)


def test_a_count_of_steps_shared_by_all_parts_counts_once(weights):
    """DeepSpeed gives all parts of a rank one count when it loads its universal form."""
    optimizer, shared = make_torchs(weights), torch.tensor(7.0)
    take_step(optimizer, weights, 0)
    for state in optimizer.state.values():
        state["step"] = shared
    complete_optimizer_state(optimizer)
    take_step(optimizer, weights, 1)
    assert [state["step"].item() for state in optimizer.state.values()] == [8.0, 8.0]
