"""Facts from Slurm: the job that this process belongs to, and the partitions of the cluster."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass

_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")


def read_host_name() -> str:
    """Return the name of this node in Slurm, or its host name outside Slurm."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def list_job_hosts() -> list[str]:
    """Return the nodes of the job: $MEDSSR_NODES, or else the list of Slurm, or else this node alone."""
    if given := os.environ.get("MEDSSR_NODES"):
        return given.replace(",", " ").split()
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    listed = _run_command("scontrol", "show", "hostnames", nodes) if nodes else ""
    return listed.split() or [read_host_name()]


def read_seconds_left() -> float | None:
    """Return the seconds until the time limit of the job; None outside a job or without a limit."""
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end) - time.time()
    job = os.environ.get("SLURM_JOB_ID")
    return parse_time(_run_command("squeue", "--noheader", "--jobs", job, "--format=%L").strip()) if job else None


def parse_time(text: str) -> float | None:
    """Return the seconds of a time in the format [days-][hours:]minutes:seconds; None for UNLIMITED and other words.

    Example: "1-02:00:05" -> 93605.0
    """
    found = _TIME.match(text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in a partition.

    Example:
        Partition(name="gpu", nodes=16, gpus=8, seconds=172800.0)

    Attributes:
        nodes: number of nodes of this kind.
        gpus: GPUs of each node.
        seconds: time limit of a job; None without limit.
    """

    name: str
    nodes: int
    gpus: int
    seconds: float | None


def list_partitions() -> list[Partition]:
    """Return all partitions of the cluster; none without Slurm."""
    lines = _run_command("sinfo", "--noheader", "--format=%R|%D|%G|%l").splitlines()
    return [parse_partition(line) for line in lines if line.count("|") == 3]


def parse_partition(line: str) -> Partition:
    """Parse a line of `sinfo --format=%R|%D|%G|%l`, for example "gpu|16|gpu:h100:8(S:0-1)|2-00:00:00"."""
    name, nodes, generic, limit = line.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", generic))
    return Partition(name, int(nodes), gpus, parse_time(limit))


def _run_command(*command: str) -> str:
    """Return the output of a Slurm command; empty if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
