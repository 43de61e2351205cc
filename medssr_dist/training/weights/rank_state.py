"""A policy rank's part of a checkpoint: random state, size, verification, conversion to another number of ranks."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch

from medssr_dist.data.checksums import compute_file_checksum
from medssr_dist.data.jsonl import sync_folder, write_atomic
from medssr_dist.errors import InputError
from medssr_dist.run.paths import CheckpointPaths
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.weights.checkpoints import Checkpoint, StoredFile

_ADAM_BYTES = 12  # for each trained weight: its fp32 value and AdamW's two moments
_SLACK_BYTES = 2**20  # for the rank's other state

logger = logging.getLogger(__name__)


def get_rng_states() -> dict[str, Any]:
    """Return the states of the process's random number generators that training uses, by library."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if on_gpu() else {})


def restore_rng_states(state: dict[str, Any]) -> None:
    """Set all generators to states returned by `get_rng_states`."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if on_gpu() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def count_shard_bytes(module: torch.nn.Module) -> int:
    """Return the size in bytes of this rank's part of a ZeRO-3 checkpoint.

    It holds the optimizer state of trained weights, and the frozen weights themselves.
    """
    total = _SLACK_BYTES
    for weight in module.parameters():
        each = _ADAM_BYTES if weight.requires_grad else weight.ds_tensor.element_size()
        total += weight.ds_tensor.numel() * each
    return total


def verify_files(folder: Path, rank: int) -> dict[str, StoredFile]:
    """Flush this rank's files in `folder` to disk and check torch's checksums; return name -> what was written.

    Raises:
        RuntimeError: a file does not match its checksum, or the rank has no file.
    """
    found = {}
    for file in sorted(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_*.pt")):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            with zipfile.ZipFile(handle) as archive:
                if damaged := archive.testzip():
                    raise RuntimeError(f"{file} is damaged: {damaged} differs from its checksum")
        found[file.name] = StoredFile(file.stat().st_size, compute_file_checksum(file))
    sync_folder(folder)
    if not found:
        raise RuntimeError(f"rank {rank} has written no file into {folder}")
    return found


def convert_to_ranks(checkpoints: Path, checkpoint: Checkpoint, ranks: int) -> bool:
    """Convert `checkpoint` to DeepSpeed's universal form if it was written by another number of ranks than `ranks`.

    DeepSpeed finds the universal form through the file `latest_universal`. The next checkpoint deletes it.

    Returns:
        Whether it was converted.

    Raises:
        InputError: DeepSpeed cannot convert it.
    """
    if checkpoint.ranks == ranks:
        return False
    paths = CheckpointPaths(checkpoints)
    universal = paths.universal(checkpoint.step)
    logger.info("checkpoint of step %d: converted from %d ranks to %d", checkpoint.step, checkpoint.ranks, ranks)
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
            f"and DeepSpeed cannot convert it ({last}); set training.nodes x training.ranks_per_node = "
            f"{checkpoint.ranks} again"
        )
    write_atomic(paths.latest_universal, universal.name)
    return True
