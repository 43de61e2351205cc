"""OpenRLHF's own weight sync on a CPU, for `medssr bench training`: gloo in place of PyNccl."""

from __future__ import annotations

import torch


class GlooBroadcaster:
    """The broadcast of vLLM's PyNcclCommunicator over gloo, outside torch's default group."""

    def __init__(self, master_address: str, master_port: int, rank: int, world_size: int, device=None):
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self._group = stateless_init_torch_distributed_process_group(
            master_address, master_port, rank, world_size, backend="gloo"
        )

    def broadcast(self, tensor: torch.Tensor, src: int, stream=None) -> None:
        """Send `tensor` in place from rank `src`; as bytes, for gloo knows no bfloat16."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor.contiguous().view(-1).view(torch.uint8)], options).wait()


class GlooWorkerExtension:
    """vLLM's end of the weight sync on CPU (`worker_extension_cls`), with the methods of OpenRLHF's WorkerWrap.

    vLLM repacks linear weights for the CPU, after which single weights cannot be loaded any more:
    they are gathered here and loaded as one set when the last has come.
    """

    def init_process_group(self, master_address, master_port, rank_offset, world_size, group_name, backend, use_ray):
        rank = torch.distributed.get_rank() + rank_offset
        self._sync_group = GlooBroadcaster(master_address, master_port, rank, world_size)
        self._received: list[tuple[str, torch.Tensor]] = []

    def update_weight(self, name, dtype, shape, empty_cache=False):
        """Receive one weight; `empty_cache` is how OpenRLHF marks the last one."""
        weight = torch.empty(shape, dtype=dtype)
        self._sync_group.broadcast(weight, src=0)
        self._received.append((name, weight))
        if empty_cache:
            self.model_runner.reload_weights(weights_iterator=iter(self._received))
            self._received = []
