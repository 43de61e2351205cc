"""vLLM's weight transfer over gloo, for machines without GPU: both ends of a backend named "gloo".

vLLM's own backends need CUDA. This one has the same order of calls as vLLM's dense NCCL backend:
`start_weight_update`, one broadcast of flat bytes for each bucket from the trainer's rank 0 to every worker,
`finish_weight_update`. The source defines the buckets (`WeightSource.groups`), and their sizes are sent together with
the names, so that both ends split the bytes in the same way.

Every process of vLLM calls `register` (entry point `vllm.general_plugins` in pyproject.toml). The trainer calls it too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import ClassVar

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from medssr_dist.inference.weight_reload import repack_tied_heads
from medssr_dist.training.group_store import GroupStore, make_group_secret
from medssr_dist.training.weights.run_together import run_together
from medssr_dist.training.weights.weight_checks import ArrivalCheck

BACKEND = "gloo"
NCCL_BACKEND = "medssr_nccl"  # nccl_transfer.py, which is imported on GPU only
IPC_BACKEND = "medssr_ipc"  # ipc_transfer.py, which is imported on GPU only
_IN_FLIGHT = 2  # buckets that are being sent while the next one is gathered


def register() -> None:
    """Register both ends of all backends with vLLM's factories; a second call in a process changes nothing."""
    here, package = __name__, __name__.rpartition(".")[0]
    nccl, ipc = f"{package}.nccl_transfer", f"{package}.ipc_transfer"
    ends = [
        (WeightTransferEngineFactory, BACKEND, here, "GlooWeightTransferEngine"),
        (WeightTransferTrainerFactory, BACKEND, here, "GlooTrainerWeightTransferEngine"),
        (WeightTransferEngineFactory, NCCL_BACKEND, nccl, "CheckedNcclWorker"),
        (WeightTransferTrainerFactory, NCCL_BACKEND, nccl, "CheckedNcclTrainer"),
        (WeightTransferEngineFactory, IPC_BACKEND, ipc, "CheckedIpcWorker"),
        (WeightTransferTrainerFactory, IPC_BACKEND, ipc, "CheckedIpcTrainer"),
    ]
    for factory, backend, module, end in ends:
        if backend not in factory._registry:
            factory.register_engine(backend, module, end)


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker needs to join the group.

    rank_offset: rank of the engine's first worker in the group. world_size: 1 sender + all workers.
    secret: the group's secret, which members prove to each other that they know.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float
    secret: str = field(repr=False)


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The weights of one update, in order.

    bucket_sizes: number of weights in each broadcast. checksums: of the weights that are compared.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    bucket_sizes: list[int]
    checksums: dict[str, int]

    @classmethod
    def from_source(cls, source: WeightSource, checksums: Mapping[str, int]) -> GlooUpdateInfo:
        metas = source.metadata()
        return cls(
            names=[meta.name for meta in metas],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metas],
            shapes=[list(meta.shape) for meta in metas],
            bucket_sizes=[len(names) for names in source.groups()],
            checksums=dict(checksums),
        )

    def iter_buckets(self) -> Iterator[list[ParamMeta]]:
        metas = zip(self.names, self.dtype_names, self.shapes, strict=True)
        for size in self.bucket_sizes:
            yield [
                ParamMeta(name, getattr(torch, dtype), tuple(shape))
                for name, dtype, shape in (next(metas) for _ in range(size))
            ]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What a training rank needs. Rank 0 is the sender and opens the group's store, at a free port."""

    backend: ClassVar[str] = BACKEND

    master_address: str
    world_size: int
    timeout_s: float


class GlooGroup:
    """A gloo process group of one sender and its receivers, separate from torch's default group.

    Args:
        port: port of the store at `address`; 0 in the sender, which opens the store at a free port.
        secret: the group's secret.
    """

    def __init__(self, address: str, port: int, rank: int, world_size: int, timeout_s: float, secret: str):
        self._rank, self._size, self._timeout = rank, world_size, timedelta(seconds=timeout_s)
        self._store = GroupStore(address, port, rank, secret, self._timeout)
        self.port = self._store.port
        self._group: torch.distributed.ProcessGroup | None = None

    def join(self) -> None:
        """Join, and wait for all other members. Raises RuntimeError at the timeout, StrangerError for a stranger."""
        from vllm.distributed.utils import init_gloo_process_group

        self._group = init_gloo_process_group(self._store.names, self._rank, self._size, self._timeout)
        self._store.check_members(self._gather)

    def _gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(own) for _ in range(self._size)]
        self._group.allgather([found], [own]).wait()
        return found

    def broadcast(self, flat: torch.Tensor) -> torch.distributed.Work:
        """Send (rank 0) or receive `flat`, uint8 [bytes]; it is complete after `wait` of the returned work."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([flat], options)


def count_bytes(meta: ParamMeta) -> int:
    """Return the size of a weight."""
    return math.prod(meta.shape) * meta.dtype.itemsize


def flatten(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the bytes of all tensors, concatenated, uint8 [bytes]; a view, if they already lie one after the other."""
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    place, end = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != place or part.storage_offset() != end:
            return torch.cat(parts)
        end += len(part)
    return parts[0].as_strided((end - parts[0].storage_offset(),), (1,))


def unflatten(flat: torch.Tensor, bucket: list[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of each weight of `bucket`; the tensors are views of `flat` where alignment allows it."""
    for meta, part in zip(bucket, flat.split([*map(count_bytes, bucket)]), strict=True):
        # A view needs an address aligned to its dtype; after weights of a narrower dtype it may not be.
        aligned = part if part.storage_offset() % meta.dtype.itemsize == 0 else part.clone()
        yield meta.name, aligned.view(meta.dtype).view(meta.shape)


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The trainer's end: the next bucket is gathered while two buckets are in flight.

    Attributes:
        checksums: of the weights that the engines compare; set before each `send_weights`.
    """

    checksums: Mapping[str, int] = MappingProxyType({})
    init_info_cls = GlooTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> GlooTrainerWeightTransferEngine:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            world = (init_info.world_size, init_info.timeout_s, make_group_secret())
            engine._group = GlooGroup(init_info.master_address, 0, 0, *world)
            worker_info = GlooInitInfo(init_info.master_address, engine._group.port, 1, *world)
            run_together(engine._group.join, client.init_weight_transfer_engine, asdict(worker_info))
        return engine

    def send_weights(self) -> None:
        """Send all weights. A collective: every rank calls it, because each bucket is gathered from all ranks.

        Raises:
            RuntimeError: a timeout, or a connection that was closed. Errors of the workers are raised as they are.
        """
        if not self.is_sender:
            for _ in self.source.iter_groups():
                pass
            return
        self.client.start_weight_update()
        update_info = GlooUpdateInfo.from_source(self.source, self.checksums)
        run_together(self._broadcast, self.client.update_weights, asdict(update_info))
        self.client.finish_weight_update()

    def _broadcast(self) -> None:
        sent: deque[torch.distributed.Work] = deque()
        failed: RuntimeError | None = None
        for _, tensors in self.source.iter_groups():  # continue after a failure: the other ranks gather too
            if failed:
                continue
            try:
                if len(sent) == _IN_FLIGHT:
                    sent.popleft().wait()
                sent.append(self._group.broadcast(flatten(tensors)))
            except RuntimeError as error:
                failed = error
        if failed:
            raise failed
        for work in sent:
            work.wait()


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """A worker's end: each layer is loaded, and repacked for the CPU, when its last weight has arrived."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        worker = self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        member = (init_info.master_address, init_info.master_port, init_info.rank_offset + worker)
        self._group = GlooGroup(*member, init_info.world_size, init_info.timeout_s, init_info.secret)
        self._group.join()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load all weights. Raises ChecksumError."""
        check = ArrivalCheck(update_info.checksums)
        self.model.load_weights(check.watch(self._receive(update_info)))  # one call: each one scans the whole model
        check.finish()

    def _receive(self, update_info: GlooUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of each weight; the next bucket is received while this one is loaded."""
        ahead: deque[tuple[list[ParamMeta], torch.Tensor, torch.distributed.Work]] = deque()
        for bucket in update_info.iter_buckets():
            flat = torch.empty(sum(map(count_bytes, bucket)), dtype=torch.uint8)
            ahead.append((bucket, flat, self._group.broadcast(flat)))
            if len(ahead) == _IN_FLIGHT:
                yield from _wait_for_bucket(*ahead.popleft())
        while ahead:
            yield from _wait_for_bucket(*ahead.popleft())

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self._group = None


def _wait_for_bucket(
    bucket: list[ParamMeta], flat: torch.Tensor, work: torch.distributed.Work
) -> Iterator[tuple[str, torch.Tensor]]:
    work.wait()
    yield from unflatten(flat, bucket)
