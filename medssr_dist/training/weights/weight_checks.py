"""Checksums of weights, which show after a sync whether the engines have what the ranks sent.

The ranks compute the checksums from a gather of its own, which shares no buffer and no stream with the transfer. The
engines compute them from the tensors that arrive, where they are loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SAMPLED = 4  # weights that are compared after each sync
_CHUNK = 2**22  # words that are widened to 64 bits at a time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ChecksumError(RuntimeError):
    """Weights that arrived differ from those that were sent; the message names them."""


def choose_sampled(names: list[str], version: int) -> list[str]:
    """Return the weights to compare in the sync of `version`: a few, the same on every rank, other ones each time."""
    return random.Random(version).sample(names, min(_SAMPLED, len(names)))


def compute_checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return a checksum of the bytes and their order, a scalar int64 on the tensor's device; it wraps around.

    It is sum over words i of (i + 1) x word i, the words being the elements' bits as signed integers.
    """
    words = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK].long()
        total += (part * torch.arange(start + 1, start + 1 + len(part), device=tensor.device)).sum()
    return total


class ArrivalCheck:
    """Compares weights with their expected checksums while they pass.

    Args:
        expected: checksums by name; weights without one are not compared.
    """

    def __init__(self, expected: dict[str, int]):
        self._expected = expected
        self._found: dict[str, torch.Tensor] = {}

    def watch(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights; nothing waits for a checksum here."""
        for name, tensor in weights:
            if name in self._expected:
                self._found[name] = compute_checksum(tensor)
            yield name, tensor

    def finish(self) -> None:
        """Raise ChecksumError if a weight differs or has not arrived."""
        found = {name: int(checksum) for name, checksum in self._found.items()}
        wrong = [name for name, checksum in self._expected.items() if found.get(name) != checksum]
        if wrong:
            more = f" and {len(wrong) - 3} others" if len(wrong) > 3 else ""
            raise ChecksumError(
                f"weight sync: {', '.join(wrong[:3])}{more} of {len(self._expected)} compared weights did not arrive "
                "as they were sent"
            )


@contextmanager
def compare_arrivals(engine: Any, expected: dict[str, int]) -> Iterator[None]:
    """Compare the weights that vLLM's `engine` loads within the block with their checksums. Raises ChecksumError."""
    check, model = ArrivalCheck(expected), engine.model
    engine.model = _WatchedModel(model, check)
    try:
        yield
    finally:
        engine.model = model
    check.finish()


class _WatchedModel:
    """Loads weights into a model while a check watches them; the rest is the model's own."""

    def __init__(self, model: torch.nn.Module, check: ArrivalCheck):
        self._model, self._check = model, check

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return self._model.load_weights(self._check.watch(weights))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
