"""The training rank's end of the weight sync: ZeRO-3 weights are gathered by buckets and sent to all rollout engines.

It replaces OpenRLHF's `broadcast_to_vllm`, which makes one Ray call, one gather and one wait for each parameter. The
weights go through vLLM's weight-transfer API: its packed NCCL transport on GPU (`nccl_transfer.py`), CUDA IPC between
processes on one GPU (`ipc_transfer.py`), ours over gloo on CPU (`gloo_transfer.py`). After each sync the engines
compare the checksums of a few weights, or of all (`training.verify_sync`), with those that the ranks have computed from
a gather of its own (`weight_checks.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.engine_failures import EngineDiedError, SyncError, is_engine_death
from medssr_dist.training.weights.gloo_transfer import (
    GlooTrainerInitInfo,
    count_bytes,
    flatten,
    register,
    unflatten,
)
from medssr_dist.training.weights.lora import list_weights
from medssr_dist.training.weights.stream_order import StreamOrder
from medssr_dist.training.weights.weight_checks import choose_sampled, compute_checksum


@dataclass(frozen=True)
class SyncSettings:
    """How weights are sent.

    bucket_bytes: size of one gather and of one broadcast; a larger weight is sent alone.
    timeout_s: limit of each wait for another process, seconds.
    workers: number of vLLM workers of an engine (its tensor-parallel size).
    verify_all: compare the checksums of all weights after a sync, not of a few.
    shares_gpus: each engine is on the GPU of a rank.

    Example: SyncSettings(bucket_bytes=256 * 2**20, timeout_s=600.0, workers=1)
    """

    bucket_bytes: int
    timeout_s: float
    workers: int
    verify_all: bool = False
    shares_gpus: bool = False


class ZeroSource(WeightSource):
    """The whole weights of a policy, gathered from ZeRO-3 shards by buckets, with adapters merged.

    Iteration is a collective: every rank iterates, in the same order. Rank 0, the sender, gets the tensors. The other
    ranks get tensors only for buckets with adapters, or with `everywhere`. A module without ZeRO-3 works too.
    """

    def __init__(self, module: torch.nn.Module, bucket_bytes: int, everywhere: bool = False):
        self._everywhere = everywhere
        self._weights = {each.name: each for each in list_weights(module)}
        self._metas = [ParamMeta(each.name, each.dtype, tuple(each.shape)) for each in self._weights.values()]
        self._groups = [[meta.name for meta in bucket] for bucket in split_into_buckets(self._metas, bucket_bytes)]

    def metadata(self) -> list[ParamMeta]:
        return self._metas

    def groups(self) -> list[list[str]]:
        return self._groups

    def iter_groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Yield (names, tensors) of each bucket, after one gather; the tensors are valid until the next iteration."""
        for names in self._groups:
            with self._gather(names) as tensors:
                yield names, tensors

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of each weight, which may be read on any CUDA stream that takes it from here."""
        for names, tensors in self.iter_groups():
            order = StreamOrder()
            for name, tensor in zip(names, tensors, strict=False):
                yield name, order.hand_over(tensor)

    def compute_checksums(self, names: list[str]) -> dict[str, int]:
        """Return the checksums of these weights on rank 0, each from a gather of its own. A collective."""
        found = {}
        for name in names:
            with self._gather([name]) as tensors:
                if tensors:
                    found[name] = int(compute_checksum(tensors[0]))
        return found

    @contextmanager
    def _gather(self, names: list[str]) -> Iterator[list[torch.Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.runtime.zero.partition_parameters import is_zero_param

        weights = [self._weights[name] for name in names]
        parameters = [parameter for each in weights for parameter in each.parameters]
        if len(parameters) == len(weights) and all(map(is_zero_param, parameters)):
            yield gather(parameters, self._everywhere)
        else:
            with GatheredParameters(parameters):
                yield [each.value() for each in weights]


def split_into_buckets(metas: list[ParamMeta], most_bytes: int) -> list[list[ParamMeta]]:
    """Split weights, in order, into buckets of at most `most_bytes`; a larger weight is a bucket alone."""
    found: list[list[ParamMeta]] = []
    filled = 0
    for meta in metas:
        size = count_bytes(meta)
        if not found or filled + size > most_bytes:
            found.append([])
            filled = 0
        found[-1].append(meta)
        filled += size
    return found


def gather(parameters: list[torch.nn.Parameter], everywhere: bool = False) -> list[torch.Tensor]:
    """Return ZeRO-3 parameters as whole tensors on rank 0, and [] on the other ranks unless `everywhere`.

    They lie one after the other in one tensor. A collective: one gather for all shards. DeepSpeed's GatheredParameters
    gathers them on every rank, and on CPU one parameter at a time.
    """
    own, group = flatten([each.ds_tensor.to(each.device) for each in parameters]), parameters[0].ds_process_group
    if everywhere:
        received = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(received, own, group=group)
    else:
        received = _gather_on_first(own, group)
    if not received:
        return []
    sizes = [each.ds_tensor.numel() * each.ds_tensor.element_size() for each in parameters]
    shards = zip(*(each.split(sizes) for each in received), strict=True)
    flat = torch.cat([part for each, parts in zip(parameters, shards, strict=True) for part in _trim(each, parts)])
    metas = [ParamMeta("", each.dtype, tuple(each.ds_shape)) for each in parameters]
    return [tensor for _, tensor in unflatten(flat, metas)]


def _gather_on_first(own: torch.Tensor, group: torch.distributed.ProcessGroup) -> list[torch.Tensor]:
    """Return the tensors of all ranks on rank 0, and [] on the others; torch's gather over gloo copies each twice."""
    from torch.distributed import P2POp, batch_isend_irecv, irecv, isend

    if torch.distributed.get_rank(group):
        received, ops = [], [P2POp(isend, own, group=group, group_peer=0)]
    else:
        others = range(1, torch.distributed.get_world_size(group))
        received = [own, *(torch.empty_like(own) for _ in others)]
        ops = [P2POp(irecv, received[rank], group=group, group_peer=rank) for rank in others]
    for work in batch_isend_irecv(ops) if ops else []:
        work.wait()
    return received


def _trim(parameter: torch.nn.Parameter, shards: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
    """Yield the shards of a parameter, bytes, without the padding at their end."""
    left = parameter.ds_numel * parameter.ds_tensor.element_size()
    for shard in shards:
        yield shard[:left]
        left = max(0, left - len(shard))


class EngineClient:
    """vLLM's VLLMWeightSyncClient for engines that are Ray actors; it names an engine that dies or does not answer.

    Args:
        engines: rollout engine actors by name.

    Attributes:
        version: version of the weights that are being sent.
        abort: called when an engine has failed, in the thread that waits for it: the transfer itself may wait for ever.
    """

    def __init__(self, engines: dict[str, ray.actor.ActorHandle], settings: SyncSettings):
        self._engines, self._settings = engines, settings
        self.version = 0
        self.abort: Callable[[], None] = _do_nothing

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [init_info] * len(self._engines)
        if "rank_offset" in init_info:  # each worker is a member of the group
            offsets = [init_info["rank_offset"] + self._settings.workers * index for index in range(len(infos))]
            infos = [init_info | {"rank_offset": offset} for offset in offsets]
        self._all("init_weight_transfer_engine", [(info,) for info in infos])

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("update_weights", [(update_info,)] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [(self.version,)] * len(self._engines))

    def _all(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> None:
        """Call `method` of every engine and wait for all.

        Raises:
            SyncError: an engine has failed, or does not answer in time; the message names it. EngineDiedError: it died.
        """
        arguments = arguments or [()] * len(self._engines)
        pending = {
            getattr(engine, method).remote(*given): name
            for (name, engine), given in zip(self._engines.items(), arguments, strict=True)
        }
        deadline = time.monotonic() + self._settings.timeout_s
        try:
            while pending:
                done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
                if not done:
                    names = ", ".join(pending.values())
                    limit = f"{self._settings.timeout_s:g} s"
                    raise SyncError(f"weight sync: no answer from {names} to {method} within {limit}")
                _get(done[0], pending.pop(done[0]), method)
        except SyncError:
            self.abort()
            raise


def _do_nothing() -> None:
    """Do nothing: what a transfer without an end of its own needs when an engine fails."""


def _get(ref: ray.ObjectRef, name: str, method: str) -> None:
    """Wait for the call `ref` of the engine `name`. Raises SyncError."""
    try:
        ray.get(ref)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1][:300]
        kind = EngineDiedError if is_engine_death(error) else SyncError
        raise kind(f"weight sync: {name} failed in {method}: {reason}") from error


class WeightSync:
    """One training rank's part in the weight sync.

    `connect` and `send` are collectives: every rank calls them, in the same order.
    """

    def __init__(self, module: torch.nn.Module, settings: SyncSettings):
        register()
        self._settings = settings
        self._source = ZeroSource(module, settings.bucket_bytes, everywhere=settings.shares_gpus and on_gpu())
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
        self._client.abort = getattr(self._transfer, "abort", _do_nothing)

    def send(self, version: int, compare_all: bool = False) -> None:
        """Send the current weights, as version number `version`, to the connected engines. Raises SyncError.

        Args:
            compare_all: compare the checksums of all weights, whatever `SyncSettings.verify_all` says.
        """
        self._wait_for_ranks()
        names = [meta.name for meta in self._source.metadata()]
        compared = names if compare_all or self._settings.verify_all else choose_sampled(names, version)
        self._transfer.checksums = self._source.compute_checksums(compared)
        self._client.version = version
        try:
            self._transfer.send_weights()
        except RuntimeError as error:
            raise SyncError(f"weight sync: interrupted while sending version {version}: {error}") from error

    def _init_info(self, address: str, world_size: int) -> TrainerInitInfo:
        if not on_gpu():
            return GlooTrainerInitInfo(address, world_size, self._settings.timeout_s, rank=self._rank)
        size = self._settings.bucket_bytes
        if self._settings.shares_gpus:
            from medssr_dist.training.weights.ipc_transfer import CheckedIpcInitInfo

            largest = max(count_bytes(meta) for meta in self._source.metadata())
            return CheckedIpcInitInfo(packed=True, packed_buffer_size_bytes=max(size, largest), rank=self._rank)
        from vllm.utils.network_utils import get_open_port

        from medssr_dist.training.weights.nccl_transfer import CheckedNcclInitInfo

        port = get_open_port() if self._rank == 0 else 0
        return CheckedNcclInitInfo(address, port, world_size, packed_buffer_size_bytes=size, rank=self._rank)

    def _wait_for_ranks(self) -> None:
        """Wait for all ranks. Raises SyncError at the timeout, which names the missing ranks."""
        timeout = timedelta(seconds=self._settings.timeout_s)
        try:
            torch.distributed.monitored_barrier(self._ranks, timeout, wait_all_ranks=True)
        except RuntimeError as error:
            raise SyncError(f"weight sync: training ranks are missing: {error}") from error
