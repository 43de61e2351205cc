"""vLLM's weight transfer over gloo, for machines without GPU: both ends of a backend named "gloo".

vLLM's own backends need CUDA. This one keeps the order of its dense NCCL backend: `start_weight_update`, one flat
broadcast of bytes a bucket from the trainer's rank 0 to every worker, `finish_weight_update`. Where the buckets end is
the source's word (`WeightSource.groups`) and travels with the names, so the two ends cannot cut differently.

Every process of vLLM calls `register` (entry point `vllm.general_plugins` in setup.py); the trainer calls it itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
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

BACKEND = "gloo"
_IN_FLIGHT = 2  # buckets being sent while the next is gathered


def register() -> None:
    """Make both ends known to vLLM's factories, once a process."""
    ends = {
        WeightTransferEngineFactory: GlooWeightTransferEngine,
        WeightTransferTrainerFactory: GlooTrainerWeightTransferEngine,
    }
    for factory, end in ends.items():
        if BACKEND not in factory._registry:
            factory.register_engine(BACKEND, end)


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker needs to join; `rank_offset` is the group rank of its engine's first worker."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """A round's weights in order; `bucket_sizes`: how many of them each broadcast holds."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    bucket_sizes: list[int]

    @classmethod
    def of(cls, source: WeightSource) -> GlooUpdateInfo:
        metas = source.metadata()
        return cls(
            names=[meta.name for meta in metas],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metas],
            shapes=[list(meta.shape) for meta in metas],
            bucket_sizes=[len(names) for names in source.groups()],
        )

    def buckets(self) -> Iterator[list[ParamMeta]]:
        metas = zip(self.names, self.dtype_names, self.shapes, strict=True)
        for size in self.bucket_sizes:
            yield [
                ParamMeta(name, getattr(torch, dtype), tuple(shape))
                for name, dtype, shape in (next(metas) for _ in range(size))
            ]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What a trainer rank needs; rank 0 sends and holds the group's store, at a port that it is given by the system."""

    backend: ClassVar[str] = BACKEND

    master_address: str
    world_size: int
    timeout_s: float


class GlooGroup:
    """A gloo group of its own, apart from torch's default one: one sender and its receivers.

    Args:
        port: of the store at `address`; 0 in the sender, which opens it.
    """

    def __init__(self, address: str, port: int, rank: int, world_size: int, timeout_s: float):
        from torch.distributed import PrefixStore, TCPStore
        from vllm.distributed.utils import init_gloo_process_group

        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(address, port, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        self.port = self._store.port
        self._join = lambda: init_gloo_process_group(PrefixStore("weights", self._store), rank, world_size, timeout)
        self._group = None

    def join(self) -> None:
        """Wait for all the others. Raises RuntimeError at the timeout."""
        self._group = self._join()

    def broadcast(self, flat: torch.Tensor) -> torch.distributed.Work:
        """Send (rank 0) or receive `flat`, uint8 [bytes]; done once the returned work has been waited for."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([flat], options)


def flattened(tensors: list[torch.Tensor]) -> torch.Tensor:
    """A copy of the tensors' bytes end to end, uint8 [bytes]."""
    return torch.cat([tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def unflattened(flat: torch.Tensor, bucket: list[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    """Named views of `flat`, as `bucket` says."""
    sizes = [math.prod(meta.shape) * meta.dtype.itemsize for meta in bucket]
    for meta, part in zip(bucket, flat.split(sizes), strict=True):
        # A view needs an address that fits its dtype; after weights of a narrower one it may not.
        aligned = part if part.storage_offset() % meta.dtype.itemsize == 0 else part.clone()
        yield meta.name, aligned.view(meta.dtype).view(meta.shape)


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The trainer's end: while two buckets are on their way, the next is gathered."""

    init_info_cls = GlooTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> GlooTrainerWeightTransferEngine:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            world = (init_info.world_size, init_info.timeout_s)
            engine._group = GlooGroup(init_info.master_address, 0, 0, *world)
            theirs = GlooInitInfo(init_info.master_address, engine._group.port, 1, *world)
            _beside(engine._group.join, client.init_weight_transfer_engine, asdict(theirs))
        return engine

    def send_weights(self) -> None:
        """Called on every rank: gathering is a collective. Raises what the workers raise, RuntimeError at a timeout."""
        if not self.is_sender:
            for _ in self.source.iter_groups():
                pass
            return
        self.client.start_weight_update()
        _beside(self._broadcast, self.client.update_weights, asdict(GlooUpdateInfo.of(self.source)))
        self.client.finish_weight_update()

    def _broadcast(self) -> None:
        sent: deque[torch.distributed.Work] = deque()
        failed: RuntimeError | None = None
        for _, tensors in self.source.iter_groups():  # to its end also after a failure: the other ranks gather too
            if failed:
                continue
            try:
                if len(sent) == _IN_FLIGHT:
                    sent.popleft().wait()
                sent.append(self._group.broadcast(flattened(tensors)))
            except RuntimeError as error:
                failed = error
        if failed:
            raise failed
        for work in sent:
            work.wait()


def _beside(ours, theirs, argument: dict) -> None:
    """Run `ours()` while `theirs(argument)` runs: both meet in the same collectives. Raises what either raises.

    Where ours fails, theirs is not waited for: it may never come back.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        future = thread.submit(theirs, argument)
        ours()
        future.result()
    finally:
        thread.shutdown(wait=False)


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """A worker's end: each layer is loaded, and repacked for the CPU, as soon as its last weight has come."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        worker = self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        place = (init_info.master_address, init_info.master_port, init_info.rank_offset + worker)
        self._group = GlooGroup(*place, init_info.world_size, init_info.timeout_s)
        self._group.join()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """The next bucket is received while this one is loaded."""
        ahead: deque[tuple[list[ParamMeta], torch.Tensor, torch.distributed.Work]] = deque()
        for bucket in update_info.buckets():
            flat = torch.empty(sum(math.prod(m.shape) * m.dtype.itemsize for m in bucket), dtype=torch.uint8)
            ahead.append((bucket, flat, self._group.broadcast(flat)))
            if len(ahead) == _IN_FLIGHT:
                self._load(*ahead.popleft())
        while ahead:
            self._load(*ahead.popleft())

    def _load(self, bucket: list[ParamMeta], flat: torch.Tensor, work: torch.distributed.Work) -> None:
        work.wait()
        self.model.load_weights(unflattened(flat, bucket))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = None
