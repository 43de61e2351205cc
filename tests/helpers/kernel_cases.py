"""Cases for the kernels, the same on the CPU and on a GPU, and the bound on their errors.

Without a GPU, this module imports Triton with its interpreter enabled, in this process alone.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

import torch

from medssr_dist.kernels import GrpoOptions, grpo_loss, linear_grpo_loss, linear_logprob, reference


def _interpret_triton() -> None:
    assert "triton" not in sys.modules, "Triton was imported, without its interpreter, before kernel_cases"
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    del os.environ["TRITON_INTERPRET"]
    triton.knobs.propagate_env = False  # child processes must not inherit it
    triton.knobs.runtime.interpret = True


if not torch.cuda.is_available():
    _interpret_triton()

DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = ("torch", "triton")


class Case(NamedTuple):
    """Shapes and settings of one comparison; `masked` drops about a third of the rows."""

    tokens: int
    hidden: int
    vocabulary: int
    temperature: float = 1.0
    entropy: bool = False
    masked: bool = False


SMALL = [
    Case(13, 33, 1201, temperature, entropy, masked)
    for temperature in (1.0, 0.6)
    for entropy in (False, True)
    for masked in (False, True)
]
REAL = [Case(4, 65, 49_152, 0.6, True, True), Case(3, 33, 128_256, 1.0, True), Case(2, 33, 151_936, 0.6)]


class Inputs(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor | None
    slopes: tuple[torch.Tensor, torch.Tensor]


def inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Logits have standard deviation 3, as of a trained model; upstream gradients are as of a mean over tokens."""
    make = torch.Generator().manual_seed(case.tokens + case.vocabulary)
    hidden = torch.randn(case.tokens, case.hidden, generator=make)
    weight = torch.randn(case.vocabulary, case.hidden, generator=make) * 3 / case.hidden**0.5
    target = torch.randint(0, case.vocabulary, (case.tokens,), generator=make)
    mask = torch.rand(case.tokens, generator=make) > 0.35 if case.masked else None
    slopes = torch.randn(2, case.tokens, generator=make) / max(1, case.tokens)
    parts = (hidden.to(dtype), weight.to(dtype), target, mask)
    return Inputs(*(None if part is None else part.to(device) for part in parts), tuple(slopes.to(device)))


def outputs_of(function, given: Inputs, entropy: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    """[logp, entropy, d hidden, d weight] of `function(hidden, weight)` in the dtype; entropy only if `entropy`."""
    hidden = given.hidden.to(dtype, copy=True).requires_grad_()
    weight = given.weight.to(dtype, copy=True).requires_grad_()
    results = function(hidden, weight)[: 2 if entropy else 1]
    sum((part * slope.to(part.dtype)).sum() for part, slope in zip(results, given.slopes, strict=False)).backward()
    return [*(part.detach() for part in results), hidden.grad, weight.grad]


def assert_within_twice(exact: list, own: list, ours: list, *, rounds: bool = True) -> None:
    """Assert that the error of `ours` is at most twice that of torch's `own`, in norm, and with `rounds` at its worst.

    Triton's interpreter truncates to bf16 where hardware rounds to nearest, so its worst element is not checked.
    """
    for place, (truth, torch_s, kernel_s) in enumerate(zip(exact, own, ours, strict=True)):
        assert kernel_s.shape == truth.shape
        tiny = 4 * torch.finfo(torch.float32).eps
        floor = tiny * truth.norm()
        assert (kernel_s.double() - truth).norm() <= 2 * (torch_s.double() - truth).norm() + floor, place
        if rounds and truth.numel():
            worst = (kernel_s.double() - truth).abs().max()
            assert worst <= 2 * (torch_s.double() - truth).abs().max() + tiny * truth.abs().max(), place


def rounds(backend: str, dtype: torch.dtype, device: str) -> bool:
    return backend == "torch" or dtype != torch.bfloat16 or device != "cpu"


def check_linear_logprob(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    given = inputs(case, dtype, device)
    columns = max(256, case.vocabulary // 4)  # several slices, the last one odd

    def oracle(hidden, weight):
        return reference.linear_logprob(hidden, weight, given.target, temperature=case.temperature, mask=given.mask)

    def ours(hidden, weight):
        result = linear_logprob(
            hidden,
            weight,
            given.target,
            temperature=case.temperature,
            mask=given.mask,
            backend=backend,
            return_entropy=case.entropy,
            workspace_bytes=columns * case.tokens * hidden.element_size(),
        )
        return result if case.entropy else (result,)

    exact = outputs_of(oracle, given, case.entropy, torch.float64)
    own = outputs_of(oracle, given, case.entropy, dtype)
    assert_within_twice(exact, own, outputs_of(ours, given, case.entropy, dtype), rounds=rounds(backend, dtype, device))


class Rollout(NamedTuple):
    """The inputs of a GRPO step other than log-probabilities, [B, T] each."""

    advantages: torch.Tensor
    mask: torch.Tensor
    old_logp: torch.Tensor
    ref_logp: torch.Tensor
    rollout_logp: torch.Tensor


def rollout(logp: torch.Tensor, seed: int = 0) -> Rollout:
    """Return inputs drawn around log-probabilities [B, T], so that each clip and gate has tokens on both sides."""
    make = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return (scale * torch.randn(logp.shape, generator=make)).to(logp)

    logp = logp.detach()
    advantages = torch.randn(logp.shape[0], 1, generator=make).to(logp).expand(logp.shape).contiguous()
    ends = torch.randint(1, logp.shape[1] + 1, (logp.shape[0], 1), generator=make)
    mask = (torch.arange(logp.shape[1]) < ends).to(logp.device)
    old = logp + noise(0.4)
    return Rollout(advantages, mask, old, logp + noise(0.5), old + noise(0.6))


OPTIONS = {
    "default": GrpoOptions(),
    "clip_higher": GrpoOptions(clip_low=0.1, clip_high=0.4),
    "dual_clip": GrpoOptions(dual_clip=1.2),
    "k1": GrpoOptions(kl_coef=0.3, kl_estimator="k1"),
    "k2": GrpoOptions(kl_coef=0.3, kl_estimator="k2"),
    "k3": GrpoOptions(kl_coef=0.3, kl_estimator="k3"),
    "k3_unbiased": GrpoOptions(kl_coef=0.3, kl_estimator="k3", kl_unbiased=True),
    "entropy": GrpoOptions(entropy_coef=0.1),
    "sequence_mean": GrpoOptions(aggregation="sequence_mean", kl_coef=0.1, penalty_aggregation="token_mean"),
    "fixed_length": GrpoOptions(aggregation="fixed_length", fixed_length=11, kl_coef=0.1),
    "token_mask": GrpoOptions(importance_level="token"),
    "token_clip": GrpoOptions(importance_level="token", importance_mode="clip", importance_high=2.0),
    "token_kl": GrpoOptions(
        importance_level="token", importance_gate="binary_kl", importance_low=0.0, importance_high=0.002
    ),
    "token_tv": GrpoOptions(importance_level="token", importance_gate="tv", importance_low=0.0, importance_high=0.002),
    "sequence_mask": GrpoOptions(importance_level="sequence", importance_low=0.9, importance_high=1.2),
    "sequence_kl": GrpoOptions(
        importance_level="sequence", importance_gate="binary_kl", importance_low=0.0, importance_high=0.002
    ),
    "gspo": GrpoOptions(ratio="sequence", aggregation="sequence_mean", clip_low=0.05, clip_high=0.05),
    "gspo_rollout": GrpoOptions(ratio="sequence", aggregation="sequence_mean", importance_level="sequence"),
}
FULL = GrpoOptions(dual_clip=1.5, kl_coef=0.2, entropy_coef=0.05, importance_level="token")


def grpo_grid(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, Rollout]:
    """Return (logp, entropy, rollout) of 6 sequences of at most 9 tokens."""
    make = torch.Generator().manual_seed(5)
    logp = (-3 * torch.rand(6, 9, generator=make) - 0.05).to(device)
    entropy = (3 * torch.rand(6, 9, generator=make)).to(device)
    return logp, entropy, rollout(logp)


def check_grpo_loss(options: GrpoOptions, backend: str, device: str = "cpu") -> None:
    """Assert that loss and slopes equal those of the reference in fp64, up to fp32 rounding."""
    logp, entropy, given = grpo_grid(device)

    def run(loss_of, dtype):
        variables = [part.to(dtype, copy=True).requires_grad_() for part in (logp, entropy)]
        loss = loss_of(*variables, Rollout(*(part if part.dtype == torch.bool else part.to(dtype) for part in given)))
        slopes = torch.autograd.grad(loss, variables, allow_unused=True)
        return [loss.detach(), *(torch.zeros_like(logp) if slope is None else slope for slope in slopes)]

    def oracle(logp, entropy, data):
        return reference.grpo_loss(logp, data.advantages, data.mask, options, entropy=entropy, **extras(data))

    def ours(logp, entropy, data):
        return grpo_loss(
            logp, data.advantages, mask=data.mask, entropy=entropy, options=options, backend=backend, **extras(data)
        )[0]

    for truth, found in zip(run(oracle, torch.float64), run(ours, torch.float32), strict=True):
        torch.testing.assert_close(found.double(), truth.double(), rtol=2e-5, atol=2e-6)


def extras(data: Rollout) -> dict[str, torch.Tensor]:
    return {"old_logp": data.old_logp, "ref_logp": data.ref_logp, "rollout_logp": data.rollout_logp}


def check_linear_grpo_loss(
    case: Case, options: GrpoOptions, dtype: torch.dtype, backend: str, device: str = "cpu", **settings
) -> None:
    """Assert that [loss, d hidden, d weight] are within twice torch's error; 3 sequences, or else one."""
    given = inputs(case, dtype, device)
    sequences = 3 if case.tokens % 3 == 0 else 1
    shape = (sequences, case.tokens // sequences)
    logp, _ = reference.linear_logprob(
        given.hidden.float(), given.weight.float(), given.target, temperature=case.temperature
    )
    data = rollout(logp.view(shape), seed=1)

    def run(loss_of, dtype):
        hidden = given.hidden.to(dtype, copy=True).requires_grad_()
        weight = given.weight.to(dtype, copy=True).requires_grad_()
        loss = loss_of(hidden, weight)
        loss.backward()
        return [loss.detach(), hidden.grad, weight.grad]

    def oracle(hidden, weight):
        logp, entropy = reference.linear_logprob(hidden, weight, given.target, temperature=case.temperature)
        return reference.grpo_loss(
            logp.view(shape), data.advantages, data.mask, options, entropy=entropy.view(shape), **extras(data)
        )

    def ours(hidden, weight):
        return linear_grpo_loss(
            hidden.view(*shape, -1),
            weight,
            given.target.view(shape),
            data.advantages,
            mask=data.mask,
            temperature=case.temperature,
            options=options,
            backend=backend,
            **extras(data),
            **settings,
        )[0]

    exact, own, found = run(oracle, torch.float64), run(oracle, dtype), run(ours, dtype)
    # The loss is a sum of signed terms: torch's own error of it can be zero by chance.
    assert abs(found[0] - exact[0]) <= 2 * abs(own[0] - exact[0]) + torch.finfo(dtype).eps
    assert_within_twice(exact[1:], own[1:], found[1:], rounds=rounds(backend, dtype, device))
