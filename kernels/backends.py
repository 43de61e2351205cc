"""The choice of the implementation: Triton on CUDA, plain torch on other devices, or the one that the caller names."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Protocol

import torch

from medssr_dist.kernels.grpo_options import GrpoOptions

logger = logging.getLogger(__name__)
BACKENDS = ("torch", "triton")


class Operations(Protocol):
    """The row and token operations that torch_ops.py and triton_ops.py both define. torch_ops.py documents them."""

    def row_stats(
        self, logits: torch.Tensor, target: torch.Tensor, stats: torch.Tensor, scale: float, entropy: bool
    ) -> None: ...

    def row_gradient(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        maximum: torch.Tensor,
        log_sum: torch.Tensor,
        entropy: torch.Tensor,
        grad_logp: torch.Tensor,
        grad_entropy: torch.Tensor | None,
        scale: float,
    ) -> None: ...

    def scale_by(self, tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor: ...

    def grpo_tokens(
        self,
        logp: torch.Tensor,
        old_logp: torch.Tensor,
        log_ratio: torch.Tensor | None,
        advantages: torch.Tensor,
        importance: torch.Tensor | None,
        ref_logp: torch.Tensor | None,
        entropy: torch.Tensor | None,
        mask: torch.Tensor,
        policy_weight: torch.Tensor,
        penalty_weight: torch.Tensor,
        options: GrpoOptions,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...

    def group_advantage(
        self, rewards: torch.Tensor, offsets: torch.Tensor, mode: str, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


def select_operations(backend: str | None, tensor: torch.Tensor) -> Operations:
    """Return the module of row and token operations for `tensor`.

    Args:
        backend: "triton", "torch" or None. None selects Triton for CUDA tensors and torch for all others.

    Raises:
        ValueError: unknown backend; Triton for float64, which only the torch form computes; Triton for CPU tensors
            without its interpreter (TRITON_INTERPRET=1).
    """
    if backend is None:
        backend = "triton" if tensor.is_cuda and tensor.dtype != torch.float64 else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {sorted(BACKENDS)} or None, not {backend!r}")
    if backend == "triton" and tensor.dtype == torch.float64:
        raise ValueError("backend 'triton' computes in float32; use backend 'torch' for float64 tensors")
    if backend == "triton" and not tensor.is_cuda and not _is_interpreted():
        raise ValueError(
            f"backend 'triton' cannot run on {tensor.device}: use backend 'torch', "
            "or set TRITON_INTERPRET=1 before Python starts"
        )
    _log_once(backend, tensor.device.type)
    return _load(backend)


@cache
def _load(backend: str) -> Operations:
    if backend == "triton":
        from medssr_dist.kernels import triton_ops

        return triton_ops
    from medssr_dist.kernels import torch_ops

    return torch_ops


def _is_interpreted() -> bool:
    from medssr_dist.kernels import triton_ops

    return triton_ops.INTERPRETED


@cache
def _log_once(backend: str, device: str) -> None:
    logger.info("kernels: %s on %s (process %d)", backend, device, os.getpid())
