"""The call of srun that starts a supervisor on every node of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def build_srun_command(nodes: int, log: Path, options: Sequence[str]) -> list[str]:
    """Return the call of srun, up to the command that each node runs.

    Args:
        log: output of a node's command; %N in its name stands for the node.
        options: further options of srun, from the cluster's file in launch/env.d.
    """
    folder = str(log.parent).replace("%", "%%")  # srun reads % as the begin of a pattern
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--cpu-bind=none",
        "--mpi=none",
        "--no-kill",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--unbuffered",
        "--input=none",
        "--export=ALL",
        "--open-mode=append",
        f"--output={folder}/{log.name}",
        *options,
    ]


def clean_for_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of srun without what the shell of an earlier job may have left and srun would obey.

    Slurm refuses memory by CPU or GPU next to memory by node, which the batch scripts request. SLURM_EXPORT_ENV would
    take the batch script's variables away from the supervisors.
    """
    dropped = {"SLURM_EXPORT_ENV", "SLURM_NTASKS", "SLURM_NPROCS"}
    if "SLURM_MEM_PER_NODE" in environment:
        dropped |= {"SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"}
    return {name: value for name, value in environment.items() if name not in dropped}
