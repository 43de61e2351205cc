"""What the kernels are measured beside: bare GEMMs, plain torch, and the field's libraries, each where it imports.

A contestant is a function that imports what it needs and returns the step to be timed: forward and backward of one
loss over a Problem, giving (loss, dX, dW). One that does not import says why by its exception. Legend: N tokens,
H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

OURS = "kernels"
CLIP, KL_COEF = 0.2, 1e-3
_SEQUENCE = 1024  # tokens a sequence, for libraries that want [B, T]
_REFERENCE_ROWS = 512

Step = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]
LogProb = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Hidden states, output weight and tokens like those of a policy that gives its own tokens about one half."""

    hidden: torch.Tensor  # [N, H], requires grad
    weight: torch.Tensor  # [V, H], requires grad
    target: torch.Tensor  # [N]
    old_logp: torch.Tensor  # [N] fp32
    ref_logp: torch.Tensor  # [N] fp32
    advantage: torch.Tensor  # [N] fp32, the same over a sequence


Loss = Callable[[Problem], torch.Tensor]
LossOfLogp = Callable[[torch.Tensor, Problem], torch.Tensor]


def _sequences(target: torch.Tensor) -> int:
    """How many equal sequences the tokens are in."""
    return max(1, target.numel() // _SEQUENCE)


def make_problem(n: int, h: int, v: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """A Problem from a fixed seed. Noise logits have deviation 2, over which the target stands by log V + 2."""
    rng = torch.Generator(device).manual_seed(0)
    weight = torch.randn(v, h, generator=rng, device=device) / h**0.5
    target = torch.randint(v, (n,), generator=rng, device=device)
    stands_out = torch.tensor(float(v)).log().item() + 2
    hidden = 2 * torch.randn(n, h, generator=rng, device=device) + stands_out * weight[target]
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    logp = reference_logp(hidden, weight, target)
    old, ref = (logp + 0.1 * torch.randn(n, generator=rng, device=device) for _ in range(2))
    sequences = _sequences(target)
    advantage = torch.randn(sequences, generator=rng, device=device).repeat_interleave(n // sequences)
    return Problem(hidden, weight, target, old, ref, advantage)


@torch.no_grad()
def reference_logp(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log p(target) in fp32, a few rows at a time."""
    weight = weight.float()
    pieces = zip(hidden.split(_REFERENCE_ROWS), target.split(_REFERENCE_ROWS), strict=True)
    return torch.cat([_logp_of(rows.float() @ weight.T, ids) for rows, ids in pieces])


@torch.no_grad()
def reference_step(problem: Problem, loss_of_logp: LossOfLogp) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, dX, dW) in fp32, a few rows at a time."""
    with torch.enable_grad():
        logp = reference_logp(problem.hidden, problem.weight, problem.target).requires_grad_()
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
    return loss.detach(), dx, dw


def _logp_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)


# The two losses, as functions of log-probs.
def mean_loss(logp: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Mean of -log p: cross-entropy, which all libraries have."""
    return -logp.mean()


def grpo_loss(logp: torch.Tensor, problem: Problem) -> torch.Tensor:
    """GRPO's clipped loss with the k3 KL, mean over tokens, in plain torch."""
    ratio = (logp - problem.old_logp).exp()
    surrogate = torch.min(ratio * problem.advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * problem.advantage)
    gap = problem.ref_logp - logp
    return (KL_COEF * (gap.exp() - gap - 1) - surrogate).mean()


# Limits: the GEMMs alone, on preallocated memory.
def gemms(problem: Problem, forwards: int, backwards: int) -> Step:
    """`forwards` times X W^T, and the first `backwards` of dL W and dL^T X."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach()
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    dx, dw = torch.empty_like(hidden), torch.empty_like(weight)

    def step() -> None:
        for _ in range(forwards):
            torch.mm(hidden, weight.T, out=logits)
        for left, right, out in ((logits, weight, dx), (logits.T, hidden, dw))[:backwards]:
            torch.mm(left, right, out=out)

    return step


# Log-probs, [N], of each way that goes through logits, and ours.
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
        logits = logits if logits.is_cuda else logits.float()  # its Triton form is fp32 inside, its torch form is not
        shape = _sequences(target), -1  # its torch form loops over sequences
        return selective_log_softmax(logits.unflatten(0, shape), target.unflatten(0, shape)).flatten()

    return logp


def _kernels() -> LogProb:
    from medssr_dist.kernels import linear_logprob

    return linear_logprob


# Losses computed whole.
def _cce(**options) -> Loss:
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
        hidden, target, advantage, ref, old = (part.unflatten(0, (_sequences(p.target), -1)) for part in parts)
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
    """A loss as a function of log-probs, the GEMMs that bound it, and name -> what imports and makes it."""

    loss_of_logp: LossOfLogp
    forwards: int
    backwards: int
    losses: dict[str, Callable[[], Loss]]


_LOGPROB = {
    OURS: _through(_kernels, mean_loss),
    **_losses(mean_loss),
    "torch chunked": _torch_chunked,
    "liger": _liger,
    "cce": _cce,  # leaves out gradients that it deems small
    "cce unfiltered": partial(_cce, filter_eps=None),
}
_GRPO = {OURS: _kernels_grpo, **_losses(grpo_loss), "liger": _liger_grpo}
TASKS = {"logprob": Task(mean_loss, 2, 2, _LOGPROB), "grpo": Task(grpo_loss, 1, 2, _GRPO)}


def differentiated(problem: Problem, loss_of: Loss) -> Step:
    """The step that gives loss, dX and dW."""

    def step() -> tuple:
        loss = loss_of(problem)
        return loss.detach(), *torch.autograd.grad(loss, (problem.hidden, problem.weight))

    return step


def row_kernels(problem: Problem, workspace_bytes: int = 2**29) -> dict[str, tuple[Step, int]]:
    """The row kernels alone, on one slice of logits: name -> (step, bytes it moves)."""
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
        "row_stats": (lambda: triton_ops.row_stats(logits, target, start.clone(), 1.0, False), size),
        "row_stats with entropy": (lambda: triton_ops.row_stats(logits, target, start.clone(), 1.0, True), size),
        "row_gradient": (gradient, 2 * size),
    }
