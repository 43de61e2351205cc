"""Which implementation runs: Triton on CUDA, plain torch elsewhere, or what the caller names."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)
_MODULES = {"triton": "medssr_dist.kernels.triton_ops", "torch": "medssr_dist.kernels.torch_ops"}


def select_operations(backend: str | None, tensor: torch.Tensor) -> ModuleType:
    """The module of row and token operations for `tensor`.

    `backend` is "triton", "torch" or None, which takes Triton for CUDA tensors and torch for all others. Triton on
    CPU tensors needs its interpreter (TRITON_INTERPRET=1); float64 has the torch form only. ValueError otherwise.
    """
    if backend is None:
        backend = "triton" if tensor.is_cuda and tensor.dtype != torch.float64 else "torch"
    if backend not in _MODULES:
        raise ValueError(f"backend must be one of {sorted(_MODULES)} or None, not {backend!r}")
    if backend == "triton" and tensor.dtype == torch.float64:
        raise ValueError("backend 'triton' computes in float32; use backend 'torch' for float64 tensors")
    module = _load(backend)
    if backend == "triton" and not tensor.is_cuda and not module.INTERPRETED:
        raise ValueError(
            f"backend 'triton' cannot run on {tensor.device}: use backend 'torch', "
            "or set TRITON_INTERPRET=1 before Python starts"
        )
    _log_once(backend, tensor.device.type)
    return module


@cache
def _load(backend: str) -> ModuleType:
    return importlib.import_module(_MODULES[backend])


@cache
def _log_once(backend: str, device: str) -> None:
    logger.info("kernels: %s on %s (process %d)", backend, device, os.getpid())
