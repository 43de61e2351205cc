"""What Slurm says about the job that this process is in, and about its partitions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass

_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")


def read_host_name() -> str:
    """This node, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def list_job_hosts() -> list[str]:
    """The job's nodes: $MEDSSR_NODES, else as Slurm lists them, else this one alone."""
    if given := os.environ.get("MEDSSR_NODES"):
        return given.replace(",", " ").split()
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    listed = _ask("scontrol", "show", "hostnames", nodes) if nodes else ""
    return listed.split() or [read_host_name()]


def read_seconds_left() -> float | None:
    """Until the job's limit; None outside a job, and in one without limit."""
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end) - time.time()
    job = os.environ.get("SLURM_JOB_ID")
    return parse_time(_ask("squeue", "--noheader", "--jobs", job, "--format=%L").strip()) if job else None


def parse_time(text: str) -> float | None:
    """Seconds of Slurm's [days-][hours:]minutes:seconds; None for UNLIMITED and the like. "1-02:00:05" -> 93605."""
    found = _TIME.match(text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True)
class Partition:
    """A line of sinfo: nodes of one kind. `seconds`: the longest job, None for no limit."""

    name: str
    nodes: int
    gpus: int
    seconds: float | None


def list_partitions() -> list[Partition]:
    """All of the cluster's; none where there is no Slurm."""
    lines = _ask("sinfo", "--noheader", "--format=%R|%D|%G|%l").splitlines()
    return [parse_partition(line) for line in lines if line.count("|") == 3]


def parse_partition(line: str) -> Partition:
    """A line of `sinfo --format=%R|%D|%G|%l`. Example: "gpu|16|gpu:h100:8(S:0-1)|2-00:00:00"."""
    name, nodes, generic, limit = line.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", generic))
    return Partition(name, int(nodes), gpus, parse_time(limit))


def _ask(*command: str) -> str:
    """Output of a Slurm command; empty where it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
