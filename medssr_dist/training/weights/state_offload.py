"""Moves what a rank needs for its update alone to the memory of the host while a colocated engine has the GPU.

That is the gradients, the fp32 weights and the two moments of AdamW: 14 of the 16 bytes of a weight in 16 bits. The
weights stay: they are sent to the engines. DeepSpeed moves gradients and buffers; it moves fp32 weights and moments of
its own FusedAdam alone, and training uses torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from medssr_dist.runtime.device import on_gpu


class StateOffload:
    """The update's state of one rank, on the GPU or on the host. On CPU both are the same memory.

    Args:
        engine: DeepSpeed's engine with the ZeRO-3 optimizer.

    Attributes:
        is_away: whether the state is on the host.
    """

    def __init__(self, engine: Any):
        self._engine, self.is_away = engine, False
        self._host: dict[int, torch.Tensor] = {}  # pinned, by the id of the tensor whose place it takes

    def move_away(self) -> None:
        """Move the state to the host. The optimizer must not step before `bring_back`."""
        from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum, OffloadStateTypeEnum

        if self.is_away:
            return
        gradients = [OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer]
        self._engine.optimizer.offload_states(gradients, OffloadDeviceEnum.cpu, pin_memory=False)
        for tensor in self._list_tensors():
            tensor.data = self._copy_to_host(tensor)
        self._finish()
        self.is_away = True

    def bring_back(self) -> None:
        """Move the state back to the GPU."""
        if not self.is_away:
            return
        device = torch.device(torch.cuda.current_device()) if on_gpu() else torch.device("cpu")
        for tensor in self._list_tensors():
            tensor.data = tensor.data.to(device)
        self._engine.optimizer.reload_states()
        self._finish()
        self.is_away = False

    def _list_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the fp32 weights and the moments; the counts of steps are scalars, and stay."""
        optimizer = self._engine.optimizer
        yield from optimizer.fp32_partitioned_groups_flat
        for state in optimizer.optimizer.state.values():
            yield from (value for value in state.values() if torch.is_tensor(value) and value.dim())

    def _copy_to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu":
            return tensor.data
        host = self._host.get(id(tensor))
        if host is None or host.shape != tensor.shape:
            host = self._host[id(tensor)] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor.data)

    def _finish(self) -> None:
        """Wait for the copies, and give free memory back to the GPU's driver, so that the engine can take it."""
        if on_gpu():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
