"""OpenRLHF's own weight sync, one broadcast per parameter, for `medssr bench training`; on CPU, over gloo."""

from __future__ import annotations

from typing import Any

import ray
import torch

from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.backend import openrlhf  # noqa: F401 - applies its patches before OpenRLHF is imported
from medssr_dist.training.ranks import PolicyRank

from openrlhf.trainer.ppo_utils import replay_buffer  # isort: skip
from openrlhf.trainer.ray import ppo_actor  # isort: skip


class GlooBroadcaster:
    """Replaces vLLM's PyNcclCommunicator: broadcasts over gloo, outside torch's default group."""

    def __init__(self, master_address: str, master_port: int, rank: int, world_size: int, device=None):
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self._group = stateless_init_torch_distributed_process_group(
            master_address, master_port, rank, world_size, backend="gloo"
        )

    def broadcast(self, tensor: torch.Tensor, src: int, stream=None) -> None:
        """Broadcast `tensor` in place from rank `src`; as bytes, because gloo does not support bfloat16."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor.contiguous().view(-1).view(torch.uint8)], options).wait()


class GlooWorkerExtension:
    """vLLM's end of the weight sync on CPU (`worker_extension_cls`), with the methods of OpenRLHF's WorkerWrap.

    vLLM repacks linear weights for the CPU. After that, single weights cannot be loaded, so all weights are collected
    here and loaded together when the last one has arrived.
    """

    def init_process_group(self, master_address, master_port, rank_offset, world_size, group_name, backend, use_ray):
        rank = torch.distributed.get_rank() + rank_offset
        self._sync_group = GlooBroadcaster(master_address, master_port, rank, world_size)
        self._received: list[tuple[str, torch.Tensor]] = []

    def update_weight(self, name, dtype, shape, empty_cache=False):
        """Receive one weight; OpenRLHF sets `empty_cache` for the last one."""
        weight = torch.empty(shape, dtype=dtype)
        self._sync_group.broadcast(weight, src=0)
        self._received.append((name, weight))
        if empty_cache:
            self.model_runner.reload_weights(weights_iterator=iter(self._received))
            self._received = []


class _TorchWithCpuDevice:
    """The module `torch`, except that `device("cuda:...")` is the CPU: NaiveReplayBuffer uses "cuda"."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)

    def device(self, name):
        return self._module.device("cpu" if str(name).startswith("cuda") else name)


def patch_for_cpu() -> None:
    """On a machine without GPU, apply the patches that OpenRLHF's trainer needs besides `backend/cpu_patches.py`.

    Its replay buffer uses the device "cuda", and its rank 0 sends weights over PyNccl, which needs GPUs.
    """
    if on_gpu() or isinstance(replay_buffer.torch, _TorchWithCpuDevice):
        return
    ppo_actor.stateless_init_process_group = GlooBroadcaster
    replay_buffer.torch = _TorchWithCpuDevice(replay_buffer.torch)


def find_worker_extension() -> str:
    """Return the class name of vLLM's end of the sync, for `worker_extension_cls`."""
    if on_gpu():
        return "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
    return "medssr_dist.bench.training.stock_sync.GlooWorkerExtension"


class StockSyncRank(PolicyRank):
    """Our rank with OpenRLHF's weight sync (`broadcast_to_vllm`)."""

    def init_model_from_pretrained(
        self, strategy, folder: str, optimizer_steps: int, engines: list[ray.actor.ActorHandle]
    ) -> None:
        self._engines = engines
        super().init_model_from_pretrained(strategy, folder, optimizer_steps)

    def make_update(self, strategy, optimizer, scheduler) -> Any:
        self.trainer = make_stock_trainer(self, strategy, optimizer, scheduler, self._engines)
        return super().make_update(strategy, optimizer, scheduler)


def make_stock_trainer(rank: PolicyRank, strategy, optimizer, scheduler, engines: list | None) -> Any:
    """Make OpenRLHF's trainer of a rank, connected to the engines, if there are any."""
    patch_for_cpu()
    return ppo_actor.ActorPPOTrainer(
        strategy,
        rank.actor,
        ema_model=None,
        actor_optim=optimizer,
        actor_scheduler=scheduler,
        micro_train_batch_size=strategy.args.train.micro_batch_size,
        tokenizer=rank.tokenizer,
        eps_clip=strategy.args.actor.eps_clip,
        vllm_engines=engines,
    )
