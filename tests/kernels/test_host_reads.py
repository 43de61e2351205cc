"""The kernels read no values from a device, except in `find_kept_rows`: a read makes the host wait for the device.

Meta tensors stand in for those of a device: they hold no values, so every read of one is an error. They run the torch
form of the operations.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest
import torch
from kernel_cases import FULL, OPTIONS

from medssr_dist.kernels import GrpoOptions, checks, group_advantage, grpo_loss, linear_grpo_loss, linear_logprob

N, H, V = 12, 8, 600


def make_head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden [N, H], weight [V, H], target [N]) without values."""
    hidden, weight = (torch.empty(rows, H, device="meta", requires_grad=True) for rows in (N, V))
    return hidden, weight, torch.empty(N, dtype=torch.int64, device="meta")


def make_token_inputs(options: GrpoOptions) -> dict:
    """Keyword arguments of both losses: tensors [N] without values, in 3 sequences."""
    names = ("advantages", "old_logp", "ref_logp", "rollout_logp", "mask")
    offsets = torch.empty(4, dtype=torch.int64, device="meta")
    return {name: torch.empty(N, device="meta") for name in names} | {"offsets": offsets, "options": options}


@pytest.fixture
def without_compaction(monkeypatch):
    """`find_kept_rows` keeps all rows; autocast, which has no meta form, does nothing."""
    for name in ("linear_logprob", "linear_grpo_loss"):
        module = sys.modules[f"medssr_dist.kernels.{name}"]
        monkeypatch.setattr(module, "find_kept_rows", lambda mask: None)
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())


@pytest.mark.parametrize("read", [bool, float, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu])
def test_each_read_of_a_meta_tensor_is_an_error(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.empty(1, device="meta"))


@pytest.mark.parametrize("masked", [False, True])
def test_the_check_of_targets_reads_nothing(masked):
    _, _, target = make_head()
    checks.require_targets(target, torch.empty(N, device="meta") if masked else None, V)


@pytest.mark.parametrize("allow_empty", [False, True])
def test_the_check_of_offsets_reads_nothing(allow_empty):
    offsets = torch.empty(4, dtype=torch.int64, device="meta")
    checks.require_offsets(offsets, N, unit="group", allow_empty=allow_empty)


@pytest.mark.parametrize("mode", ["group_norm", "mean_only", "rloo"])
def test_group_advantage_reads_nothing(mode):
    offsets = torch.empty(4, dtype=torch.int64, device="meta")
    assert group_advantage(torch.empty(N, device="meta"), offsets, mode=mode).advantage.shape == (N,)


def test_linear_logprob_reads_nothing_but_the_kept_rows(without_compaction):
    hidden, weight, target = make_head()
    mask = torch.empty(N, device="meta")
    logp, entropy = linear_logprob(hidden, weight, target, mask=mask, return_entropy=True, workspace_bytes=1)
    (logp + entropy).sum().backward()
    assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape


@pytest.mark.parametrize("name", OPTIONS)
def test_grpo_loss_reads_nothing(name):
    logp = torch.empty(N, device="meta", requires_grad=True)
    grpo_loss(logp, entropy=torch.empty(N, device="meta"), **make_token_inputs(OPTIONS[name])).loss.backward()
    assert logp.grad.shape == (N,)


@pytest.mark.parametrize("options", [FULL, OPTIONS["gspo"]], ids=["direct", "through log-probabilities"])
def test_linear_grpo_loss_reads_nothing_but_the_kept_rows(options, without_compaction):
    hidden, weight, target = make_head()
    linear_grpo_loss(hidden, weight, target, **make_token_inputs(options), workspace_bytes=1).loss.backward()
    assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape


@pytest.fixture
def as_on_a_device(monkeypatch):
    """CPU tensors are checked as those of a device are; on the CPU a failed assertion raises at once."""
    monkeypatch.setattr(checks, "_is_on_host", lambda tensor: False)


@pytest.mark.parametrize("target", [[0, 300, 1], [0, -1, 1]])
def test_the_device_refuses_a_target_outside_the_vocabulary(target, as_on_a_device):
    with pytest.raises(RuntimeError, match=r"target \(3,\) .* holds a value outside the vocabulary of 300"):
        checks.require_targets(torch.tensor(target), torch.tensor([1, 1, 0]), 300)


def test_the_device_accepts_good_targets_and_masked_ones(as_on_a_device):
    checks.require_targets(torch.tensor([0, 299, -100]), torch.tensor([1, 1, 0]), 300)
    checks.require_targets(torch.empty(0, dtype=torch.int64), None, 300)


@pytest.mark.parametrize(
    ("offsets", "allow_empty"),
    [([1, 2, 4], True), ([0, 2, 3], True), ([0, 3, 2, 4], True), ([0, 2, 2, 4], False)],
    ids=["first", "last", "backwards", "empty"],
)
def test_the_device_refuses_bad_offsets(offsets, allow_empty, as_on_a_device):
    with pytest.raises(RuntimeError, match=r"offsets \(\d,\) .* must run from 0 to 4, group after group"):
        checks.require_offsets(torch.tensor(offsets), 4, unit="group", allow_empty=allow_empty)


def test_the_device_accepts_good_offsets(as_on_a_device):
    checks.require_offsets(torch.tensor([0, 2, 2, 4]), 4, unit="group", allow_empty=True)
    checks.require_offsets(torch.tensor([0, 2, 4]), 4, unit="group", allow_empty=False)
    checks.require_offsets(torch.tensor([0]), 0, unit="group", allow_empty=False)
