"""The GEMMs and the bounded workspace they write to."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ALIGNMENT = 64  # elements; keeps rows of the workspace on 128-byte lines in bf16


def accumulator_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def multiply_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, add: bool) -> None:
    """out = a @ b, or out += a @ b; `out` may be fp32 where a and b are of lower precision.

    On CUDA cuBLAS then adds its own fp32 accumulators to `out`; the CPU has no such GEMM, and rounds the product once.
    """
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    elif out.is_cuda and add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    elif out.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        product = torch.mm(a, b)
        out.add_(product) if add else out.copy_(product)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def even_parts(total: int, largest: int, multiple: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of near-equal parts of [0, total): multiples of `multiple`, at most `largest` (or one multiple)."""
    largest = max(multiple, largest // multiple * multiple)
    parts = max(1, -(-total // largest))
    width = max(multiple, round_up(-(-total // parts), multiple))
    for start in range(0, total, width):
        yield start, min(start + width, total)


class Workspace:
    """One allocation, seen as logits of any shape that fits: rows on aligned strides.

    What lies between the rows is zero. oneDNN's bf16 GEMM with AMX reads it and multiplies it by zero: a NaN there,
    as memory that nobody has written may hold, would be a NaN in the product.
    """

    def __init__(self, rows: int, columns: int, like: torch.Tensor) -> None:
        self._flat = like.new_empty(rows * round_up(columns, ALIGNMENT))

    def logits(self, rows: int, columns: int) -> torch.Tensor:
        stride = round_up(columns, ALIGNMENT)
        whole = self._flat[: rows * stride].view(rows, stride)
        whole[:, columns:].zero_()
        return whole[:, :columns]
