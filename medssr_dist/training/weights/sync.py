"""A training rank's end of the weight sync: ZeRO-3 weights, gathered a bucket at a time, to all rollout engines.

It takes the place of OpenRLHF's `broadcast_to_vllm`, which is one Ray call, one gather and one wait a parameter. Sent
over vLLM's weight-transfer API: its packed NCCL engine on GPU, ours over gloo on CPU (`weight_transfer.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.weights.gloo_transfer import GlooTrainerInitInfo, register
from medssr_dist.training.weights.lora import exported


class SyncError(Exception):
    """Weights did not reach every engine; the message names who did not take part."""


@dataclass(frozen=True)
class SyncSettings:
    """How weights travel.

    bucket_bytes: of a gather and of a broadcast; a larger weight goes alone.
    timeout_s: of each wait for another process.
    workers: vLLM workers an engine (its tensor-parallel size).
    """

    bucket_bytes: int
    timeout_s: float
    workers: int


class ZeroSource(WeightSource):
    """A policy's weights whole, adapters merged, from ZeRO-3 shards (or from a module that is whole), by buckets.

    Iterating is a collective: every rank does it, in the same order. Rank 0, which sends, has the tensors; the others
    have none, except in buckets with adapters.
    """

    def __init__(self, module: torch.nn.Module, bucket_bytes: int):
        self._weights = {each.name: each for each in exported(module)}
        self._metas = [ParamMeta(each.name, each.dtype, tuple(each.shape)) for each in self._weights.values()]
        self._groups = [[meta.name for meta in bucket] for bucket in buckets(self._metas, bucket_bytes)]

    def metadata(self) -> list[ParamMeta]:
        return self._metas

    def groups(self) -> list[list[str]]:
        return self._groups

    def iter_groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """One gather a bucket; its tensors are there until the next is asked for."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        for names in self._groups:
            weights = [self._weights[name] for name in names]
            parameters = [parameter for each in weights for parameter in each.parameters]
            if len(parameters) == len(weights) and all(map(is_zero_param, parameters)):
                yield names, gathered(parameters)
            else:
                with GatheredParameters(parameters):
                    yield names, [each.value() for each in weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=False)


def buckets(metas: list[ParamMeta], most_bytes: int) -> list[list[ParamMeta]]:
    """Consecutive weights of at most `most_bytes` together; one that is larger is a bucket of its own."""
    found: list[list[ParamMeta]] = []
    filled = 0
    for meta in metas:
        size = math.prod(meta.shape) * meta.dtype.itemsize
        if not found or filled + size > most_bytes:
            found.append([])
            filled = 0
        found[-1].append(meta)
        filled += size
    return found


def gathered(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """ZeRO-3 parameters whole in rank 0, [] in the others. A collective: one gather of all their shards.

    DeepSpeed's GatheredParameters brings them to every rank, and on CPU one at a time.
    """
    shards = [each.ds_tensor.detach().to(each.device).view(-1).view(torch.uint8) for each in parameters]
    own, group = torch.cat(shards), parameters[0].ds_process_group
    world = torch.distributed.get_world_size(group)
    received = [torch.empty_like(own) for _ in range(world)] if torch.distributed.get_rank(group) == 0 else None
    torch.distributed.gather(own, received, group=group, group_dst=0)
    if received is None:
        return []
    sizes = [shard.numel() for shard in shards]
    parts = zip(*(each.split(sizes) for each in received), strict=True)
    return [
        torch.cat(part).view(each.dtype)[: each.ds_numel].view(each.ds_shape)
        for part, each in zip(parts, parameters, strict=True)
    ]


class EngineClient:
    """vLLM's VLLMWeightSyncClient for engines that are Ray actors, with a timeout that names the engine.

    Args:
        engines: rollout engine actors by name.
    """

    def __init__(self, engines: dict[str, ray.actor.ActorHandle], settings: SyncSettings):
        self._engines, self._settings = engines, settings
        self.version = 0  # of the weights being sent

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        offsets = [init_info["rank_offset"] + self._settings.workers * index for index in range(len(self._engines))]
        self._all("init_weight_transfer_engine", [(init_info | {"rank_offset": offset},) for offset in offsets])

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: dict) -> None:
        self._all("update_weights", [(update_info,)] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [(self.version,)] * len(self._engines))

    def _all(self, method: str, arguments: list[tuple] | None = None) -> None:
        """Call `method` of every engine and wait for all. Raises SyncError naming those that do not answer."""
        arguments = arguments or [()] * len(self._engines)
        refs = {
            getattr(engine, method).remote(*given): name
            for (name, engine), given in zip(self._engines.items(), arguments, strict=True)
        }
        ready, missing = ray.wait(list(refs), num_returns=len(refs), timeout=self._settings.timeout_s)
        ray.get(ready)
        if missing:
            names = ", ".join(refs[ref] for ref in missing)
            raise SyncError(f"weight sync: no answer from {names} to {method} within {self._settings.timeout_s:g} s")


class WeightSync:
    """One training rank's part. `connect` and `send` are collectives: called on every rank, in the same order."""

    def __init__(self, module: torch.nn.Module, settings: SyncSettings):
        register()
        self._settings = settings
        self._source = ZeroSource(module, settings.bucket_bytes)
        self._rank = torch.distributed.get_rank()
        self._ranks = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=settings.timeout_s))

    def connect(self, engines: dict[str, ray.actor.ActorHandle]) -> None:
        """Join with `engines`, by name, in a group of their own; an earlier group is left. Raises SyncError."""
        self._call_roll()
        self._client = EngineClient(engines, self._settings)
        world_size = 1 + self._settings.workers * len(engines)
        address = ray.util.get_node_ip_address()
        self._transfer = WeightTransferTrainerFactory.trainer_init(
            self._init_info(address, world_size), client=self._client, source=self._source
        )

    def send(self, version: int) -> None:
        """Send the weights as they are, as `version`, to the engines of the last `connect`. Raises SyncError."""
        self._call_roll()
        self._client.version = version
        try:
            self._transfer.send_weights()
        except RuntimeError as error:
            raise SyncError(f"weight sync: broken off at weights {version}: {error}") from error

    def _init_info(self, address: str, world_size: int):
        if not on_gpu():
            return GlooTrainerInitInfo(address, world_size, self._settings.timeout_s, rank=self._rank)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        port = get_open_port() if self._rank == 0 else 0
        size = self._settings.bucket_bytes
        return NCCLTrainerInitInfo(address, port, world_size, packed_buffer_size_bytes=size, rank=self._rank)

    def _call_roll(self) -> None:
        """Wait for every rank. Raises SyncError naming those that have not come at the timeout."""
        timeout = timedelta(seconds=self._settings.timeout_s)
        try:
            torch.distributed.monitored_barrier(self._ranks, timeout, wait_all_ranks=True)
        except RuntimeError as error:
            raise SyncError(f"weight sync: training ranks are missing: {error}") from error
