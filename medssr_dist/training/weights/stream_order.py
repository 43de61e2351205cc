"""Tensors that one CUDA stream computes and another one reads.

vLLM's packed producer alternates two streams. A bucket that our source gathers on one of them is packed partly on the
other, which knows nothing of the gather: it could read the weights before they are there, or after their memory was
reused.
"""

from __future__ import annotations

import torch

from medssr_dist.runtime.device import on_gpu


class StreamOrder:
    """Made after tensors were computed, on the stream that computed them. On CPU it does nothing."""

    def __init__(self) -> None:
        self._computed = torch.cuda.current_stream().record_event() if on_gpu() else None

    def hand_over(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`, safe to read on the current stream: it waits, and the memory is kept until it has read."""
        if self._computed is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self._computed)
            tensor.record_stream(stream)
        return tensor
