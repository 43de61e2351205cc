"""What the kernels are compared with: bare GEMMs, plain torch, and other libraries, each if it can be imported.

A contestant is a function that imports what it needs and returns the step that is timed: forward and backward of one
loss over a Problem. A contestant that cannot be imported raises, and the reason is listed. Shapes: N tokens, H hidden
size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

OURS = "kernels"
CLIP, KL_COEF = 0.2, 1e-3
_SEQUENCE = 1024  # tokens a sequence, for libraries that need [B, T]
_REFERENCE_ROWS = 512


class LossGradients(NamedTuple):
    """The loss (0-d), dX [N, H] and dW [V, H]."""

    loss: torch.Tensor
    d_hidden: torch.Tensor
    d_weight: torch.Tensor


Step = Callable[[], LossGradients | None]
LogProb = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Hidden states, output weight and tokens like those of a policy that gives the sampled tokens about one half.

    An example is `make_problem(512, 576, 49152, "cpu")`.
    """

    hidden: torch.Tensor  # [N, H], requires grad
    weight: torch.Tensor  # [V, H], requires grad
    target: torch.Tensor  # [N]
    old_logp: torch.Tensor  # [N] fp32
    ref_logp: torch.Tensor  # [N] fp32
    advantage: torch.Tensor  # [N] fp32, constant over a sequence


Loss = Callable[[Problem], torch.Tensor]
LossOfLogp = Callable[[torch.Tensor, Problem], torch.Tensor]


def _count_sequences(target: torch.Tensor) -> int:
    """Return the number of equal sequences that the tokens form."""
    return max(1, target.numel() // _SEQUENCE)


def make_problem(n: int, h: int, v: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Return a Problem from a fixed seed. Logits have standard deviation 2; the target's is larger by log V + 2."""
    rng = torch.Generator(device).manual_seed(0)
    weight = torch.randn(v, h, generator=rng, device=device) / h**0.5
    target = torch.randint(v, (n,), generator=rng, device=device)
    margin = torch.tensor(float(v)).log().item() + 2
    hidden = 2 * torch.randn(n, h, generator=rng, device=device) + margin * weight[target]
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    logp = compute_reference_logp(hidden, weight, target)
    old, ref = (logp + 0.1 * torch.randn(n, generator=rng, device=device) for _ in range(2))
    sequences = _count_sequences(target)
    advantage = torch.randn(sequences, generator=rng, device=device).repeat_interleave(n // sequences)
    return Problem(hidden, weight, target, old, ref, advantage)


@torch.no_grad()
def compute_reference_logp(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return log p(target) [N] in fp32, computed a few rows at a time."""
    weight = weight.float()
    pieces = zip(hidden.split(_REFERENCE_ROWS), target.split(_REFERENCE_ROWS), strict=True)
    return torch.cat([_logp_of(rows.float() @ weight.T, ids) for rows, ids in pieces])


@torch.no_grad()
def compute_reference(problem: Problem, loss_of_logp: LossOfLogp) -> LossGradients:
    """Return loss, dX and dW in fp32, computed a few rows at a time."""
    with torch.enable_grad():
        logp = compute_reference_logp(problem.hidden, problem.weight, problem.target).requires_grad_()
        loss = loss_of_logp(logp, problem)
        (upstream,) = torch.autograd.grad(loss, logp)
    weight = problem.weight.float()
    dx, dw = torch.empty_like(problem.hidden, dtype=torch.float32), torch.zeros_like(weight)
    for rows in torch.arange(logp.numel(), device=logp.device).split(_REFERENCE_ROWS):
        hidden = problem.hidden[rows].float()
        dlogits = torch.softmax(hidden @ weight.T, -1).neg_()
        dlogits[torch.arange(len(rows), device=rows.device), problem.target[rows]] += 1
        dlogits *= upstream[rows, None]
        dx[rows] = dlogits @ weight
        dw += dlogits.T @ hidden
    return LossGradients(loss.detach(), dx, dw)


def _logp_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)


# The two losses, as functions of log-probs.
def mean_loss(logp: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Return the mean of -log p: the cross-entropy, which all libraries have."""
    return -logp.mean()


def grpo_loss(logp: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Return GRPO's clipped loss with the k3 KL, mean over tokens, in plain torch."""
    ratio = (logp - problem.old_logp).exp()
    surrogate = torch.min(ratio * problem.advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * problem.advantage)
    gap = problem.ref_logp - logp
    return (KL_COEF * (gap.exp() - gap - 1) - surrogate).mean()


# Limits: the GEMMs alone, on preallocated memory.
def make_gemms(problem: Problem, forwards: int, backwards: int) -> Step:
    """Return the step of `forwards` times X W^T, and the first `backwards` of dL W and dL^T X, where dL [N, V]."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach()
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    dx, dw = torch.empty_like(hidden), torch.empty_like(weight)

    def step() -> None:
        for _ in range(forwards):
            torch.mm(hidden, weight.T, out=logits)
        for left, right, out in ((logits, weight, dx), (logits.T, hidden, dw))[:backwards]:
            torch.mm(left, right, out=out)

    return step


# Log-probabilities [N]: every implementation that computes logits, and ours.
def _naive() -> LogProb:
    return lambda hidden, weight, target: _logp_of((hidden @ weight.T).float(), target)


def _compiled() -> LogProb:
    return torch.compile(_naive(), dynamic=False)


def _openrlhf() -> LogProb:
    from medssr_dist.training.backend import cpu_patches

    cpu_patches.apply()
    from openrlhf.models.utils import log_probs_from_logits

    return lambda hidden, weight, target: log_probs_from_logits((hidden @ weight.T).float(), target)


def _trl() -> LogProb:
    from trl.trainer.utils import selective_log_softmax

    def logp(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = hidden @ weight.T
        # TRL's Triton form computes in fp32, its torch form does not.
        logits = logits if logits.is_cuda else logits.float()
        shape = _count_sequences(target), -1  # its torch form loops over sequences
        return selective_log_softmax(logits.unflatten(0, shape), target.unflatten(0, shape)).flatten()

    return logp


def _kernels() -> LogProb:
    from medssr_dist.kernels import linear_logprob

    return linear_logprob


# Implementations that compute the whole loss.
def _cce(**options: Any) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return lambda p: linear_cross_entropy(p.hidden, p.weight, p.target, impl="cce", **options)


def _liger() -> Loss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda p: liger_fused_linear_cross_entropy(p.hidden, p.weight, p.target)


def _torch_chunked() -> Loss:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda p: F.linear_cross_entropy(p.hidden, p.weight, p.target, options=options)


def _liger_grpo() -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss_of = LigerFusedLinearGRPOLoss(beta=KL_COEF, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="bnpo")

    def loss(p: Problem) -> torch.Tensor:
        parts = (p.hidden, p.target, p.advantage, p.ref_logp, p.old_logp)
        hidden, target, advantage, ref, old = (part.unflatten(0, (_count_sequences(p.target), -1)) for part in parts)
        logps = {"ref_per_token_logps": ref, "old_per_token_logps": old}
        return loss_of(hidden, p.weight, target, torch.ones_like(target), advantage[:, 0], **logps)[0]

    return loss


def _kernels_grpo() -> Loss:
    from medssr_dist.kernels import GrpoOptions, linear_grpo_loss

    options = GrpoOptions(clip_low=CLIP, clip_high=CLIP, kl_coef=KL_COEF, kl_estimator="k3")

    def loss(p: Problem) -> torch.Tensor:
        logps = {"old_logp": p.old_logp, "ref_logp": p.ref_logp}
        return linear_grpo_loss(p.hidden, p.weight, p.target, p.advantage, options=options, **logps)[0]

    return loss


def _through(logprob: Callable[[], LogProb], loss_of_logp: LossOfLogp) -> Callable[[], Loss]:
    def make() -> Loss:
        logp = logprob()
        return lambda p: loss_of_logp(logp(p.hidden, p.weight, p.target), p)

    return make


def _losses(loss_of_logp: LossOfLogp) -> dict[str, Callable[[], Loss]]:
    ways = {"torch": _naive, "torch.compile": _compiled, "openrlhf": _openrlhf, "trl": _trl}
    return {name: _through(way, loss_of_logp) for name, way in ways.items()}


@dataclass(frozen=True)
class Task:
    """One comparison: the loss as a function of log-probabilities, the GEMMs that bound it, and the contestants.

    `losses`: name -> the function that imports the contestant and returns its loss. TASKS has the examples.
    """

    loss_of_logp: LossOfLogp
    forwards: int
    backwards: int
    losses: dict[str, Callable[[], Loss]]


_LOGPROB = {
    OURS: _through(_kernels, mean_loss),
    **_losses(mean_loss),
    "torch chunked": _torch_chunked,
    "liger": _liger,
    "cce": _cce,  # skips gradients below a threshold
    "cce unfiltered": partial(_cce, filter_eps=None),
}
_GRPO = {OURS: _kernels_grpo, **_losses(grpo_loss), "liger": _liger_grpo}
TASKS = {"logprob": Task(mean_loss, 2, 2, _LOGPROB), "grpo": Task(grpo_loss, 1, 2, _GRPO)}


def differentiate(problem: Problem, loss_of: Loss) -> Step:
    """Return the step that computes loss, dX and dW."""

    def step() -> LossGradients:
        loss = loss_of(problem)
        return LossGradients(loss.detach(), *torch.autograd.grad(loss, (problem.hidden, problem.weight)))

    return step


class RowKernel(NamedTuple):
    """A row kernel alone: its step, and the bytes that it reads and writes."""

    step: Step
    moved_bytes: int


def make_row_kernels(problem: Problem, workspace_bytes: int = 2**29) -> dict[str, RowKernel]:
    """Return name -> row kernel, on one slice of logits."""
    from medssr_dist.kernels import triton_ops
    from medssr_dist.kernels.linear_logprob import empty_stats, finish_stats

    target, n = problem.target, problem.target.numel()
    columns = min(len(problem.weight), workspace_bytes // (2 * n) // 256 * 256)
    logits = torch.randn(n, columns, device=target.device, dtype=problem.hidden.dtype)
    start, upstream = empty_stats(n, logits), torch.full((n,), 1e-3, device=target.device)
    stats = start.clone()
    triton_ops.row_stats(logits, target, stats, 1.0, False)
    row, size = finish_stats(stats, 1.0), logits.numel() * logits.element_size()

    def gradient() -> None:
        triton_ops.row_gradient(logits, target, row.maximum, row.log_sum, row.entropy, upstream, None, 1.0)

    return {
        "row_stats": RowKernel(lambda: triton_ops.row_stats(logits, target, start.clone(), 1.0, False), size),
        "row_stats with entropy": RowKernel(
            lambda: triton_ops.row_stats(logits, target, start.clone(), 1.0, True), size
        ),
        "row_gradient": RowKernel(gradient, 2 * size),
    }
