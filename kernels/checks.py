"""Checks of the kernels' arguments. A ValueError names the tensor, its shape and what was expected.

Shapes, dtypes, devices and Python numbers are checked on the host. The values of a tensor are checked where the tensor
is stored. For a CPU tensor, that is on the host, with a ValueError. For a device tensor, it is an assertion on the
device (`torch._assert_async`): reading the values would make the host wait until the device has finished all earlier
work. A failed assertion prints its message and appears as a CUDA error in a later call. To find that call, set
CUDA_LAUNCH_BLOCKING=1; for a readable ValueError, run the same input on the CPU.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch

T = TypeVar("T")


def describe(name: str, tensor: torch.Tensor) -> str:
    """Return the name, shape, dtype and device of `tensor`, as an error message shows them."""
    return f"{name} {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` is true."""
    if not condition:
        raise ValueError(message)


def require_given(value: T | None, message: str) -> T:
    """Return `value`; raise ValueError with `message` if it is None."""
    if value is None:
        raise ValueError(message)
    return value


def require_floating(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless `tensor` has a floating-point dtype."""
    require(tensor.is_floating_point(), f"{describe(name, tensor)}: must be floating point")


def require_like(name: str, tensor: torch.Tensor | None, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless `tensor` is None or has the shape and the device of `other`."""
    if tensor is None:
        return
    same = tensor.shape == other.shape and tensor.device == other.device
    require(same, f"{describe(name, tensor)}: must have the shape and device of {describe(other_name, other)}")


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    require(math.isfinite(value) and value > 0, f"{name} must be a positive finite number, not {value}")


def require_linear(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Raise ValueError unless hidden [N, H], weight [V, H], target [N] and mask [N] fit together."""
    require_floating("hidden", hidden)
    require(hidden.dim() == 2, f"{describe('hidden', hidden)}: must be [N, H]")
    require(weight.dim() == 2, f"{describe('weight', weight)}: must be [V, H]")
    require(weight.shape[0] > 0, f"{describe('weight', weight)}: has no rows (is a sharded weight not gathered?)")
    fits = weight.shape[1] == hidden.shape[1]
    fits = fits and weight.dtype == hidden.dtype and weight.device == hidden.device
    require(fits, f"{describe('weight', weight)}: H, dtype and device must be those of {describe('hidden', hidden)}")
    fits = target.dtype in (torch.int64, torch.int32) and target.shape == hidden.shape[:1]
    fits = fits and target.device == hidden.device
    require(
        fits, f"{describe('target', target)}: must be integers [N], N and device those of {describe('hidden', hidden)}"
    )
    require_like("mask", mask, "target", target)


def require_targets(target: torch.Tensor, mask: torch.Tensor | None, vocabulary: int) -> None:
    """Require that every unmasked target is in [0, vocabulary). Masked targets may have any value, such as -100.

    Raises:
        ValueError: for a CPU tensor. Of a device tensor, the device asserts it (see the module's docstring).
    """
    inside = (target >= 0) & (target < vocabulary)
    if mask is not None:
        inside |= mask == 0
    if not _is_on_host(target):
        message = f"{describe('target', target)}: holds a value outside the vocabulary of {vocabulary}"
        torch._assert_async(inside.all(), message)
    elif not bool(inside.all()):
        first = int(target[~inside][0])
        raise ValueError(f"{describe('target', target)}: holds {first}, outside the vocabulary of {vocabulary}")


def require_offsets(offsets: torch.Tensor, total: int, *, unit: str, allow_empty: bool) -> None:
    """Require that `offsets` [B+1] cut [0, total) into B parts: the first is 0, the last `total`, and they increase.

    Args:
        unit: what a part is called in the message, such as "group".
        allow_empty: whether a part may be empty.

    Raises:
        ValueError: for a CPU tensor, or a wrong shape or dtype. Of a device tensor, the device asserts the values.
    """
    fits = offsets.dim() == 1 and offsets.numel() > 0 and offsets.dtype in (torch.int64, torch.int32)
    require(fits, f"{describe('offsets', offsets)}: must be integers [B+1]")
    if not _is_on_host(offsets):
        lengths = offsets.diff()
        rises = lengths >= 0 if allow_empty else lengths > 0
        message = f"{describe('offsets', offsets)}: must run from 0 to {total}, {unit} after {unit}"
        torch._assert_async((offsets[0] == 0) & (offsets[-1] == total) & rises.all(), message)
        return
    edges = offsets.tolist()
    spans = edges[0] == 0 and edges[-1] == total
    require(spans, f"{describe('offsets', offsets)}: must run from 0 to {total}, not {edges[0]} to {edges[-1]}")
    for index, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        require(start <= stop, f"{describe('offsets', offsets)}: {unit} {index} runs backwards, {start} to {stop}")
        require(allow_empty or start < stop, f"{describe('offsets', offsets)}: {unit} {index} is empty")


def _is_on_host(tensor: torch.Tensor) -> bool:
    """Whether the host can read `tensor` without waiting for a device."""
    return tensor.is_cpu
