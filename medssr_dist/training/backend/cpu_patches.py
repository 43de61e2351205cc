"""OpenRLHF on a machine without GPU: every stand-in it needs, in one place. On GPU only the version is checked,
and builds are guarded (`op_builds.py`).

Importing `medssr_dist.training.ranks` applies it, so it is in force in each Ray worker before
OpenRLHF is imported there. What it stands in for, and why:
- `torch.cuda` device calls are made unconditionally;
- flash-attn is imported for packing and ring attention, neither of which is used on CPU;
- the device mesh and the replay buffer name "cuda";
- DeepSpeed takes a batch of gathers for done when the last is, which holds in the order of an NCCL stream: gloo has
  several threads, and a weight might be read before it is whole;
- with `training.weight_sync: openrlhf` weights travel to vLLM over PyNccl, which has no CPU form: a gloo group
  takes its place, and vLLM's end of it is `GlooWorkerExtension`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import os
import sys
import types
from functools import partial

import torch

from medssr_dist.bench.training.stock_sync import GlooBroadcaster
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.backend.op_builds import guard_op_builds

SUPPORTED_OPENRLHF = "0.11.2"
_applied = False


def apply() -> None:
    """Put the stand-ins in place, once a process. Raises RuntimeError for another OpenRLHF version."""
    global _applied
    version = importlib.metadata.version("openrlhf")
    if version != SUPPORTED_OPENRLHF:
        raise RuntimeError(f"training is written for openrlhf {SUPPORTED_OPENRLHF}, found {version}")
    guard_op_builds()
    if _applied or on_gpu():
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    _stand_in_for_cuda()
    _import_without_flash_attn()
    _use_cpu_in_openrlhf()
    _wait_for_every_gather()
    _applied = True


def _stand_in_for_cuda() -> None:
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_stream = lambda device=None: None


def _import_without_flash_attn() -> None:
    """Import OpenRLHF's user of flash-attn with empty modules in its place, then take them out again.

    Left in, they would make transformers believe that flash-attn is installed.
    """
    names = {
        "flash_attn": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils": (),
        "flash_attn.utils.distributed": ("all_gather",),
    }
    for name, attributes in names.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for attribute in attributes:
            setattr(module, attribute, _needs_flash_attn)
        sys.modules[name] = module
    try:
        importlib.import_module("openrlhf.models.ring_attn_utils")
    finally:
        for name in names:
            del sys.modules[name]


def _wait_for_every_gather() -> None:
    from deepspeed.runtime.zero.partition_parameters import Init

    together = Init._allgather_params_coalesced

    def one_by_one(self, parameters, *args, **kwargs):
        for parameter in parameters:
            together(self, [parameter], *args, **kwargs)

    Init._allgather_params_coalesced = one_by_one


def _needs_flash_attn(*args, **kwargs):
    raise RuntimeError("packing and ring attention need flash-attn, which needs a GPU")


def _use_cpu_in_openrlhf() -> None:
    from openrlhf.trainer.ppo_utils import replay_buffer
    from openrlhf.utils import distributed_util
    from openrlhf.utils.deepspeed import deepspeed

    deepspeed.init_device_mesh = partial(_cpu_mesh, deepspeed.init_device_mesh)
    distributed_util.stateless_init_process_group = GlooBroadcaster
    replay_buffer.torch = _TorchWithCpuDevice(torch)


def _cpu_mesh(init_device_mesh, device_type, *args, **kwargs):
    return init_device_mesh("cpu", *args, **kwargs)


class _TorchWithCpuDevice:
    """`torch`, except that `device("cuda:...")` is the CPU."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)

    def device(self, name):
        return self._module.device("cpu" if str(name).startswith("cuda") else name)
