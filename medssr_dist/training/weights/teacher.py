"""The slow-moving teacher of `voting.online`: an exponential moving average of the policy's weights, which votes.

After each step t, theta'_t = d theta'_{t-1} + (1 - d) theta_t with d = `voting.online.teacher`, as in Mean Teacher
(arXiv 1703.01780, equation 1). Each rank averages its own ZeRO-3 shards, in float32 and in host memory: 4 bytes for
each trained weight, divided by the number of ranks. Frozen weights are those of the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from medssr_dist.errors import InputError


class Teacher:
    """This rank's shards of the average.

    Args:
        module: the policy in training; its parameters are ZeRO-3 shards.
        decay: d, in (0, 1).
        average: shards of a checkpoint, by name of the parameter; None = the policy as it is now.

    Raises:
        InputError: the checkpoint has no teacher, or that of another number of ranks.
    """

    def __init__(self, module: torch.nn.Module, decay: float, average: Mapping[str, torch.Tensor] | None = None):
        self._decay = decay
        self._shards = {name: weight.ds_tensor for name, weight in module.named_parameters() if weight.requires_grad}
        found = {name: shard.detach().to("cpu", torch.float32, copy=True) for name, shard in self._shards.items()}
        if average is not None:
            if _list_shapes(average) != _list_shapes(found):
                raise InputError(
                    "voting.online.teacher: the checkpoint has no teacher for these ranks, because each rank keeps the "
                    "part that belongs to its weights; set training.nodes x training.ranks_per_node as before"
                )
            found = dict(average)
        self.average = found

    def follow(self) -> None:
        """Move the average towards the policy; call it once after each step."""
        for name, shard in self._shards.items():
            self.average[name].lerp_(shard.detach().to("cpu", torch.float32), 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the policy's shards hold the average, and afterwards the policy's weights again, bit for bit."""
        own = {name: shard.detach().clone() for name, shard in self._shards.items()}
        try:
            for name, shard in self._shards.items():
                shard.data.copy_(self.average[name])
            yield
        finally:
            for name, shard in self._shards.items():
                shard.data.copy_(own[name])


def _list_shapes(shards: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: shard.shape for name, shard in shards.items()}
