"""What a policy rank writes beside DeepSpeed's state and takes up again, and the step to another number of ranks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import torch

from medssr_dist.data.jsonl import sync_folder, write_atomic
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.weights.checkpoints import Checkpoint

_ADAM_BYTES = 12  # of a trained weight: fp32 itself and AdamW's two moments
_SLACK = 2**20  # the rank's other state


def rng_state() -> dict:
    """The state of every random number generator of this process that training draws from."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if on_gpu() else {})


def restore_rng(state: dict) -> None:
    """Go on from `rng_state`."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if on_gpu() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def shard_bytes(module: torch.nn.Module) -> int:
    """Bytes that this rank's part of a ZeRO-3 checkpoint takes: optimizer state of trained weights, frozen weights."""
    total = _SLACK
    for weight in module.parameters():
        each = _ADAM_BYTES if weight.requires_grad else weight.ds_tensor.element_size()
        total += weight.ds_tensor.numel() * each
    return total


def read_back(folder: Path, rank: int) -> dict[str, int]:
    """Flush this rank's files in `folder` to disk and compare each with its checksums; returns name -> bytes.

    Raises RuntimeError for a file that does not read as it was written.
    """
    sizes = {}
    for file in sorted(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_*.pt")):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            with zipfile.ZipFile(handle) as archive:
                if damaged := archive.testzip():
                    raise RuntimeError(f"{file} was not written as it should be: {damaged} differs from its checksum")
        sizes[file.name] = file.stat().st_size
    sync_folder(folder)
    if not sizes:
        raise RuntimeError(f"rank {rank} has left no file in {folder}")
    return sizes


def fit_to_ranks(checkpoints: Path, checkpoint: Checkpoint, ranks: int) -> bool:
    """Bring `checkpoint` into DeepSpeed's universal form where it was written by another number of ranks.

    Returns whether it was. DeepSpeed then finds it by the file `latest_universal`; it is taken away again by the next
    checkpoint. Raises InputError where DeepSpeed cannot convert it.
    """
    if checkpoint.ranks == ranks:
        return False
    paths = CheckpointPaths(checkpoints)
    universal = paths.universal(checkpoint.step)
    print(f"checkpoint of step {checkpoint.step}: from {checkpoint.ranks} ranks to {ranks}")
    command = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--input_folder",
        str(paths.at(checkpoint.step)),
        "--output_folder",
        str(universal),
        "--num_extract_workers",
        "2",
        "--num_merge_workers",
        "2",
    ]
    env = os.environ | ({} if on_gpu() else {"DS_ACCELERATOR": "cpu"})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise InputError(
            f"the checkpoint of step {checkpoint.step} was written by {checkpoint.ranks} ranks, the run has {ranks}, "
            f"and DeepSpeed cannot convert it ({last}); go back to training.nodes x training.ranks_per_node = "
            f"{checkpoint.ranks}"
        )
    write_atomic(paths.latest_universal, universal.name)
    return True
