"""Bad input is refused before any work: a ValueError that names the tensor, its shape and what was expected."""

from __future__ import annotations

import math

import torch


def describe(name: str, tensor: torch.Tensor) -> str:
    return f"{name} {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_floating(name: str, tensor: torch.Tensor) -> None:
    require(tensor.is_floating_point(), f"{describe(name, tensor)}: must be floating point")


def require_like(name: str, tensor: torch.Tensor | None, other_name: str, other: torch.Tensor) -> None:
    """`tensor` has the shape and the device of `other`; None passes."""
    if tensor is None:
        return
    same = tensor.shape == other.shape and tensor.device == other.device
    require(same, f"{describe(name, tensor)}: must have the shape and device of {describe(other_name, other)}")


def require_positive(name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, f"{name} must be a positive finite number, not {value}")


def require_linear(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> None:
    """hidden [N, H], weight [V, H], target [N], mask [N] fit each other."""
    require_floating("hidden", hidden)
    require(hidden.dim() == 2, f"{describe('hidden', hidden)}: must be [N, H]")
    require(weight.dim() == 2, f"{describe('weight', weight)}: must be [V, H]")
    require(weight.shape[0] > 0, f"{describe('weight', weight)}: has no rows (is a sharded weight not gathered?)")
    fits = weight.shape[1] == hidden.shape[1]
    fits = fits and weight.dtype == hidden.dtype and weight.device == hidden.device
    require(fits, f"{describe('weight', weight)}: H, dtype and device must be those of {describe('hidden', hidden)}")
    whole = target.dtype in (torch.int64, torch.int32) and target.shape == hidden.shape[:1]
    whole = whole and target.device == hidden.device
    require(whole, f"{describe('target', target)}: must be integers [N] beside {describe('hidden', hidden)}")
    require_like("mask", mask, "target", target)


def require_targets(target: torch.Tensor, mask: torch.Tensor | None, vocabulary: int) -> None:
    """Every unmasked target is in [0, vocabulary). Masked ones may be anything, -100 say."""
    outside = (target < 0) | (target >= vocabulary)
    if mask is not None:
        outside &= mask != 0
    if target.numel() and bool(outside.any()):
        worst = int(target[outside][0])
        raise ValueError(f"{describe('target', target)}: holds {worst}, outside the vocabulary of {vocabulary}")


def require_offsets(bounds: torch.Tensor, total: int, *, unit: str, allow_empty: bool) -> None:
    """`bounds` [B+1] cuts [0, total) into B units: 0 first, `total` last, rising."""
    whole = bounds.dim() == 1 and bounds.numel() > 0 and bounds.dtype in (torch.int64, torch.int32)
    require(whole, f"{describe('offsets', bounds)}: must be integers [B+1]")
    edges = bounds.tolist()
    spans = edges[0] == 0 and edges[-1] == total
    require(spans, f"{describe('offsets', bounds)}: must run from 0 to {total}, not {edges[0]} to {edges[-1]}")
    for index, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        require(start <= stop, f"{describe('offsets', bounds)}: {unit} {index} runs backwards, {start} to {stop}")
        require(allow_empty or start < stop, f"{describe('offsets', bounds)}: {unit} {index} is empty")
