"""vLLM's packed NCCL weight transfer with checksums, and with an end when an engine dies: the backend NCCL_BACKEND.

The order of calls is that of vLLM's backend "nccl", whose transport both ends use unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from medssr_dist.training.weights.gloo_transfer import NCCL_BACKEND
from medssr_dist.training.weights.run_together import run_together
from medssr_dist.training.weights.weight_checks import compare_arrivals


@dataclass
class CheckedNcclInitInfo(NCCLTrainerInitInfo):
    """What a training rank needs; see vLLM's class."""

    backend: ClassVar[str] = NCCL_BACKEND


@dataclass
class CheckedNcclUpdateInfo(NCCLWeightTransferUpdateInfo):
    """The weights of one update, in order. checksums: of the weights that are compared."""

    checksums: dict[str, int] = field(default_factory=dict)


class CheckedNcclTrainer(NCCLTrainerWeightTransferEngine):
    """The trainer's end.

    Attributes:
        checksums: of the weights that the engines compare; set before each `send_weights`.
    """

    checksums: Mapping[str, int] = MappingProxyType({})

    def send_weights(self) -> None:
        """Send all weights. A collective: every rank calls it. Errors of the engines are raised as they are."""
        metas = self.source.metadata()
        if self.is_sender:
            update_info = CheckedNcclUpdateInfo(
                names=[meta.name for meta in metas],
                dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metas],
                shapes=[list(meta.shape) for meta in metas],
                checksums=dict(self.checksums),
            )
            self.client.start_weight_update()
            run_together(lambda: self._broadcast(self.source, metas), self.client.update_weights, asdict(update_info))
            self.client.finish_weight_update()
        else:
            self._broadcast(self.source, metas)
        torch.cuda.current_stream().synchronize()

    def abort(self) -> None:
        """Make broadcasts that wait for a dead engine return, in the thread that waits; later ones do nothing."""
        if self.model_update_group is not None:
            self.model_update_group.destroy()


class CheckedNcclWorker(NCCLWeightTransferEngine):
    """A worker's end: weights are compared with their checksums as they are loaded."""

    update_info_cls = CheckedNcclUpdateInfo

    def receive_weights(self, update_info: CheckedNcclUpdateInfo) -> None:
        """Receive and load all weights. Raises ChecksumError."""
        with compare_arrivals(self, update_info.checksums):
            super().receive_weights(update_info)
