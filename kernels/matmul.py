"""The GEMMs, and the workspace of bounded size that they write to."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ALIGNMENT = 64  # elements; keeps rows of the workspace on 128-byte lines in bf16


def accumulator_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype that sums over `tensor` are kept in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def multiply_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, add: bool) -> None:
    """Compute out = a @ b, or with `add` out += a @ b. `out` may be fp32 where a and b are of lower precision.

    In that case cuBLAS adds its fp32 accumulators to `out`. The CPU has no such GEMM and rounds the product once.
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
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def split_evenly(total: int, largest: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of parts of [0, total) of nearly equal size.

    The size is a multiple of `multiple`, and at most `largest` unless that is less than one multiple.
    """
    largest = max(multiple, largest // multiple * multiple)
    parts = max(1, -(-total // largest))
    width = max(multiple, round_up(-(-total // parts), multiple))
    for start in range(0, total, width):
        yield start, min(start + width, total)


class Workspace:
    """One allocation that is reused for logits of any shape that fits. Rows begin at multiples of ALIGNMENT.

    The elements between the rows are zero. oneDNN's bf16 GEMM with AMX reads them and multiplies them by zero: a NaN
    there, which uninitialised memory may hold, would be a NaN in the product.
    """

    def __init__(self, rows: int, columns: int, like: torch.Tensor) -> None:
        self._flat = like.new_empty(rows * round_up(columns, ALIGNMENT))

    def logits(self, rows: int, columns: int) -> torch.Tensor:
        """Return the view [rows, columns]. Its values are those of the last use; only the gaps are set to zero."""
        stride = round_up(columns, ALIGNMENT)
        whole = self._flat[: rows * stride].view(rows, stride)
        whole[:, columns:].zero_()
        return whole[:, :columns]
