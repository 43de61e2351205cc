"""The cases of the CPU tests on CUDA with compiled Triton, and tests that need a GPU."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    BACKENDS,
    DTYPES,
    FULL,
    OPTIONS,
    REAL,
    SMALL,
    Case,
    check_grpo_loss,
    check_linear_grpo_loss,
    check_linear_logprob,
)

from medssr_dist.kernels import backends, group_advantage, linear_grpo_loss, linear_logprob

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
QWEN = (4096, 151_936)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SMALL, *REAL, Case(512, 1024, 151_936, 0.6, True, True)], ids=str)
def test_error_is_at_most_twice_torch_s_own(case, dtype, backend):
    check_linear_logprob(case, dtype, backend, "cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_grpo_loss_is_the_reference_s(name, backend):
    check_grpo_loss(OPTIONS[name], backend, "cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [Case(21, 17, 1301, 0.6), Case(3, 33, 151_936), Case(1536, 256, 4099)], ids=str)
def test_linear_grpo_loss_is_the_reference_s(case, dtype, backend):
    check_linear_grpo_loss(case, FULL, dtype, backend, "cuda", workspace_bytes=1)


def test_group_advantage_is_the_cpu_s():
    rewards, offsets = torch.rand(1000), torch.tensor([0, 1, 8, 300, 1000])
    for one, other in zip(
        group_advantage(rewards.cuda(), offsets.cuda()), group_advantage(rewards, offsets), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other)


def test_triton_is_the_path_taken():
    assert backends.select_operations(None, torch.ones(1, device="cuda")).__name__ == "medssr_dist.kernels.triton_ops"


def at_qwen_s_size(tokens: int):
    hidden = torch.randn(tokens, QWEN[0], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(*QWEN[::-1], device="cuda", dtype=torch.bfloat16).mul_(0.02).requires_grad_()
    return hidden, weight, torch.randint(0, QWEN[1], (tokens,), device="cuda")


@pytest.mark.parametrize("name", ["linear_logprob", "linear_grpo_loss"])
def test_peak_memory_is_the_gradients_and_1_3_gb(name):
    tokens = 16_384
    hidden, weight, target = at_qwen_s_size(tokens)
    mask = torch.rand(tokens, device="cuda") > 0.05
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    if name == "linear_logprob":
        linear_logprob(hidden, weight, target, mask=mask).sum().backward()
    else:
        advantages = torch.randn(tokens, device="cuda")
        linear_grpo_loss(hidden, weight, target, advantages, mask=mask)[0].backward()
    gradients = 2 * (hidden.numel() + weight.numel())
    assert torch.cuda.max_memory_allocated() - before <= gradients + 1.3e9


def test_offsets_past_two_to_the_31():
    """A workspace of 20,000 x 151,936 logits in one slice, compared with its last rows computed alone."""
    hidden, weight, target = at_qwen_s_size(20_000)
    with torch.no_grad():
        together = linear_logprob(hidden, weight, target, workspace_bytes=2**34)
        alone = linear_logprob(hidden[-64:], weight, target[-64:])
    torch.testing.assert_close(together[-64:], alone, rtol=2e-3, atol=2e-3)
