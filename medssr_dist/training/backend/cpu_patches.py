"""The patches that OpenRLHF and DeepSpeed need on a machine without GPU.

On GPU, the version is checked, and OpenRLHF is imported without flash-attn where that is absent.

Importing `backend/openrlhf.py` applies the patches in every process before OpenRLHF is imported. Each patch, and what
in OpenRLHF 0.11.2 or DeepSpeed 0.19.6 makes it necessary:

- `torch.cuda.current_device` and four other functions are called without a check, for example in `ppo_actor.py::fit`.
- `openrlhf/models/ring_attn_utils.py` imports flash-attn at its top, although only packing and ring attention use it.
- `deepspeed.py::setup_distributed` passes "cuda" to its device mesh.
- DeepSpeed compiles an operator for all-reduces in shared memory, which only its inference uses.
- DeepSpeed's `_allgather_params_coalesced` waits only for the last of several gathers. This suffices in an NCCL stream,
  which is ordered. Gloo uses several threads, so a weight might be read before it is complete.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import types
from functools import partial

import torch

from medssr_dist.runtime.device import on_gpu

SUPPORTED_OPENRLHF = "0.11.2"
_applied = False


def apply() -> None:
    """Apply the patches once in this process. Raises RuntimeError for another version of OpenRLHF."""
    global _applied
    version = importlib.metadata.version("openrlhf")
    if version != SUPPORTED_OPENRLHF:
        raise RuntimeError(f"training needs openrlhf {SUPPORTED_OPENRLHF}, found {version}")
    if _applied:
        return
    _applied, on_cpu = True, not on_gpu()
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        _replace_cuda_calls()
    if importlib.util.find_spec("flash_attn") is None:
        _import_without_flash_attn()
    if on_cpu:
        _use_cpu_mesh()
        _leave_out_shm_op()
        _wait_for_every_gather()


def _replace_cuda_calls() -> None:
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_stream = lambda device=None: None


def _import_without_flash_attn() -> None:
    """Import OpenRLHF's module that uses flash-attn while empty modules stand in for flash-attn, then remove those.

    If they stayed, transformers would assume that flash-attn is installed.
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
            setattr(module, attribute, _refuse_flash_attn)
        sys.modules[name] = module
    try:
        importlib.import_module("openrlhf.models.ring_attn_utils")
    finally:
        for name in names:
            del sys.modules[name]


def _refuse_flash_attn(*args, **kwargs):
    raise RuntimeError("ring attention, and packing in OpenRLHF's own network, need the package flash-attn")


def _use_cpu_mesh() -> None:
    from openrlhf.utils.deepspeed import deepspeed

    deepspeed.init_device_mesh = partial(_make_cpu_mesh, deepspeed.init_device_mesh)


def _make_cpu_mesh(init_device_mesh, device_type, *args, **kwargs):
    return init_device_mesh("cpu", *args, **kwargs)


def _leave_out_shm_op() -> None:
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def _wait_for_every_gather() -> None:
    from deepspeed.runtime.zero.partition_parameters import Init

    gather_together = Init._allgather_params_coalesced

    def gather_one_by_one(self, parameters, *args, **kwargs):
        for parameter in parameters:
            gather_together(self, [parameter], *args, **kwargs)

    Init._allgather_params_coalesced = gather_one_by_one
