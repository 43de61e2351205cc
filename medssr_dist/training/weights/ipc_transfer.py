"""vLLM's weight transfer by CUDA IPC with checksums, for engines on the GPUs of the ranks: the backend IPC_BACKEND.

NCCL takes each GPU once in a group, so a rank cannot send to the engine on its own GPU. Here every rank gathers each
weight, packs it into a buffer on its GPU, and the engine there reads this buffer. Both ends are vLLM's, unchanged but
for the checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from vllm.distributed.weight_transfer.ipc_engine import (
    IPCTrainerInitInfo,
    IPCTrainerWeightTransferEngine,
    IPCWeightTransferEngine,
    IPCWeightTransferUpdateInfo,
)

from medssr_dist.training.weights.gloo_transfer import IPC_BACKEND
from medssr_dist.training.weights.weight_checks import compare_arrivals


@dataclass
class CheckedIpcInitInfo(IPCTrainerInitInfo):
    """What a training rank needs; see vLLM's class."""

    backend: ClassVar[str] = IPC_BACKEND


@dataclass
class CheckedIpcUpdateInfo(IPCWeightTransferUpdateInfo):
    """The weights of one buffer, in order. checksums: of those that are compared."""

    checksums: dict[str, int] = field(default_factory=dict)


class CheckedIpcTrainer(IPCTrainerWeightTransferEngine):
    """The trainer's end.

    Attributes:
        checksums: of the weights that the engines compare; set before each `send_weights`.
    """

    checksums: Mapping[str, int] = MappingProxyType({})

    def _do_send(self, names: list[str], **fields: Any) -> None:
        if self.is_sender:
            sums = {name: self.checksums[name] for name in names if name in self.checksums}
            self.client.update_weights(asdict(CheckedIpcUpdateInfo(names=names, checksums=sums, **fields)))


class CheckedIpcWorker(IPCWeightTransferEngine):
    """A worker's end: weights are compared with their checksums as they are loaded."""

    update_info_cls = CheckedIpcUpdateInfo

    def receive_weights(self, update_info: CheckedIpcUpdateInfo) -> None:
        """Load the weights of one buffer. Raises ChecksumError."""
        with compare_arrivals(self, update_info.checksums):
            super().receive_weights(update_info)
