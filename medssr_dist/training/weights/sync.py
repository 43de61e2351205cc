"""The training rank's end of the weight sync: ZeRO-3 weights are gathered by buckets and sent to all rollout engines.

It replaces OpenRLHF's `broadcast_to_vllm`, which makes one Ray call, one gather and one wait for each parameter. The
weights go through vLLM's weight-transfer API: its packed NCCL engine on GPU, ours over gloo on CPU
(`gloo_transfer.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.weights.gloo_transfer import GlooTrainerInitInfo, register
from medssr_dist.training.weights.lora import list_weights


class SyncError(Exception):
    """The weights did not reach every engine; the message names the missing ranks or engines."""


@dataclass(frozen=True)
class SyncSettings:
    """How weights are sent.

    bucket_bytes: size of one gather and of one broadcast; a larger weight is sent alone.
    timeout_s: limit of each wait for another process, seconds.
    workers: number of vLLM workers of an engine (its tensor-parallel size).

    Example: SyncSettings(bucket_bytes=256 * 2**20, timeout_s=600.0, workers=1)
    """

    bucket_bytes: int
    timeout_s: float
    workers: int


class ZeroSource(WeightSource):
    """The whole weights of a policy, gathered from ZeRO-3 shards by buckets, with adapters merged.

    Iteration is a collective: every rank iterates, in the same order. Rank 0, the sender, gets the tensors. The other
    ranks get tensors only for buckets with adapters. A module without ZeRO-3 works too.
    """

    def __init__(self, module: torch.nn.Module, bucket_bytes: int):
        self._weights = {each.name: each for each in list_weights(module)}
        self._metas = [ParamMeta(each.name, each.dtype, tuple(each.shape)) for each in self._weights.values()]
        self._groups = [[meta.name for meta in bucket] for bucket in split_into_buckets(self._metas, bucket_bytes)]

    def metadata(self) -> list[ParamMeta]:
        return self._metas

    def groups(self) -> list[list[str]]:
        return self._groups

    def iter_groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Yield (names, tensors) of each bucket, after one gather; the tensors are valid until the next iteration."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        for names in self._groups:
            weights = [self._weights[name] for name in names]
            parameters = [parameter for each in weights for parameter in each.parameters]
            if len(parameters) == len(weights) and all(map(is_zero_param, parameters)):
                yield names, gather_on_rank_0(parameters)
            else:
                with GatheredParameters(parameters):
                    yield names, [each.value() for each in weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=False)


def split_into_buckets(metas: list[ParamMeta], most_bytes: int) -> list[list[ParamMeta]]:
    """Split weights, in order, into buckets of at most `most_bytes`; a larger weight is a bucket alone."""
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


def gather_on_rank_0(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return ZeRO-3 parameters as whole tensors on rank 0, and [] on the other ranks.

    A collective: one gather for all shards. DeepSpeed's GatheredParameters gathers them on every rank, and on CPU one
    parameter at a time.
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
    """vLLM's VLLMWeightSyncClient for engines that are Ray actors; at a timeout it names the engine.

    Args:
        engines: rollout engine actors by name.

    Attributes:
        version: version of the weights that are being sent.
    """

    def __init__(self, engines: dict[str, ray.actor.ActorHandle], settings: SyncSettings):
        self._engines, self._settings = engines, settings
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [init_info["rank_offset"] + self._settings.workers * index for index in range(len(self._engines))]
        self._all("init_weight_transfer_engine", [(init_info | {"rank_offset": offset},) for offset in offsets])

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("update_weights", [(update_info,)] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [(self.version,)] * len(self._engines))

    def _all(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> None:
        """Call `method` of every engine and wait for all. Raises SyncError, which names engines that do not answer."""
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
    """One training rank's part in the weight sync.

    `connect` and `send` are collectives: every rank calls them, in the same order.
    """

    def __init__(self, module: torch.nn.Module, settings: SyncSettings):
        register()
        self._settings = settings
        self._source = ZeroSource(module, settings.bucket_bytes)
        self._rank = torch.distributed.get_rank()
        self._ranks = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=settings.timeout_s))

    def connect(self, engines: dict[str, ray.actor.ActorHandle]) -> None:
        """Form a new process group with these engines, by name; an earlier group is left. Raises SyncError."""
        self._wait_for_ranks()
        self._client = EngineClient(engines, self._settings)
        world_size = 1 + self._settings.workers * len(engines)
        address = ray.util.get_node_ip_address()
        self._transfer = WeightTransferTrainerFactory.trainer_init(
            self._init_info(address, world_size), client=self._client, source=self._source
        )

    def send(self, version: int) -> None:
        """Send the current weights, as version number `version`, to the connected engines. Raises SyncError."""
        self._wait_for_ranks()
        self._client.version = version
        try:
            self._transfer.send_weights()
        except RuntimeError as error:
            raise SyncError(f"weight sync: interrupted while sending version {version}: {error}") from error

    def _init_info(self, address: str, world_size: int) -> TrainerInitInfo:
        if not on_gpu():
            return GlooTrainerInitInfo(address, world_size, self._settings.timeout_s, rank=self._rank)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        port = get_open_port() if self._rank == 0 else 0
        size = self._settings.bucket_bytes
        return NCCLTrainerInitInfo(address, port, world_size, packed_buffer_size_bytes=size, rank=self._rank)

    def _wait_for_ranks(self) -> None:
        """Wait for all ranks. Raises SyncError at the timeout, which names the missing ranks."""
        timeout = timedelta(seconds=self._settings.timeout_s)
        try:
            torch.distributed.monitored_barrier(self._ranks, timeout, wait_all_ranks=True)
        except RuntimeError as error:
            raise SyncError(f"weight sync: training ranks are missing: {error}") from error
