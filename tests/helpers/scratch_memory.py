"""Fresh memory as it may be at its worst: every buffer that torch hands out unwritten holds a chosen value."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_UNWRITTEN = {_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty, _ATEN.new_empty_strided}
_GEMMS = {_ATEN.mm, _ATEN.addmm}


class Scratch(TorchDispatchMode):
    """Within, unwritten memory is filled with `value`: NaN or 0; in other dtypes their largest number or 0.

    Attributes:
        gemms: GEMMs that were called.
        padded: operands of theirs whose rows lie apart.
        unsafe: those of them with NaN or infinity between the rows, which a library may read: oneDNN with AMX does.
    """

    def __init__(self, value: float):
        super().__init__()
        self._value = value
        self.gemms = self.padded = self.unsafe = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        if packet in _GEMMS:
            self.gemms += 1
            for gap in map(between_rows, args):
                self.padded += gap.numel() > 0
                self.unsafe += not gap.isfinite().all()
        result = function(*args, **(kwargs or {}))
        if packet in _UNWRITTEN and not result.is_meta:
            result.fill_(self._worst(result.dtype))
        return result

    def _worst(self, dtype: torch.dtype) -> float | int | bool:
        if dtype.is_floating_point or self._value == 0:
            return self._value
        return True if dtype == torch.bool else torch.iinfo(dtype).max


def between_rows(operand: torch.Tensor) -> torch.Tensor:
    """What lies between the rows of a matrix (or its columns, where those lie whole), and behind the last one."""
    rows = operand if operand.stride(1) == 1 else operand.t()
    count, width = rows.shape
    gap = rows.stride(0) - width
    if gap <= 0 or rows.stride(1) != 1:
        return operand.new_zeros(0)
    start = rows.storage_offset() + width
    end = start + (count - 1) * rows.stride(0) + gap
    if end > rows.untyped_storage().nbytes() // rows.element_size():
        count -= 1
    return rows.as_strided((count, gap), (rows.stride(0), 1), start)
