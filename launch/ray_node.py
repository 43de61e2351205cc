"""How a node supervisor starts Ray: with explicit address, resources, ports and temporary directory, and a token."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.errors import InputError
from medssr_dist.launch.ports import PortBlock
from medssr_dist.runtime.network import list_interfaces
from medssr_dist.runtime.shared_memory import RUN_VARIABLE

_STORE_SHARE, _STORE_LEAST, _STORE_MOST = 0.1, 200 * 2**20, 16 * 2**30  # bytes; the objects are prompts and texts


@dataclass(frozen=True)
class NodeResources:
    """What the job has on this node.

    Example: NodeResources(cpus=64, gpus=8, memory_mib=500000)

    Attributes:
        gpus: 0 on a CPU node; the launcher then chooses its number of logical GPUs (slots).
    """

    cpus: int
    gpus: int
    memory_mib: int

    @classmethod
    def from_slurm(cls) -> NodeResources:
        """Read the resources from the environment of a Slurm task.

        Raises:
            InputError: the node has GPUs, but Slurm gave the job none, and nothing says that this is wanted.
        """
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("MEDSSR_GPUS") or 0)
        if not gpus and os.environ.get("MEDSSR_DEVICE") != "cpu" and (found := count_nvidia_gpus()):
            raise InputError(
                f"this node has {found} GPUs, but Slurm gave the job none; submit with --gpus-per-node={found}; where "
                f"Slurm does not manage GPUs, set MEDSSR_GPUS={found} in the cluster's file in launch/env.d; to use "
                "the CPUs alone, set MEDSSR_DEVICE=cpu there"
            )
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        per_cpu = int(os.environ.get("SLURM_MEM_PER_CPU") or 0) * cpus
        asked = int(os.environ.get("SLURM_MEM_PER_NODE") or 0) or per_cpu
        return cls(cpus, gpus, min(asked, total) or total)


def count_nvidia_gpus() -> int:
    """Return how many GPUs NVIDIA's driver shows on this node; 0 without the driver."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def build_ray_command(
    head: str | None, ip: str, block: PortBlock, resources: NodeResources, slots: int, temp_dir: Path
) -> list[str]:
    """Return the command `ray start` of the head, or of a node that joins the head.

    Args:
        head: address of the head; None for the head itself.
        slots: logical GPUs of a CPU node; ignored on a node with real GPUs.
    """
    gpus = resources.gpus or slots
    cpus = resources.cpus if resources.gpus else max(resources.cpus, 2 * slots + 2)
    store = min(max(int(resources.memory_mib * 2**20 * _STORE_SHARE), _STORE_LEAST), _STORE_MOST)
    role = (
        ["--head", "--include-dashboard=false", "--dashboard-host=127.0.0.1"] if head is None else [f"--address={head}"]
    )
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        *role,
        "--block",
        "--disable-usage-stats",
        "--log-style=pretty",
        "--log-color=false",
        f"--node-ip-address={ip}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        f"--object-store-memory={store}",
        f"--temp-dir={temp_dir}",
        *block.ray_options(head is None),
    ]


def build_node_environment(
    ip: str, block: PortBlock, slots: int, hosts: list[str], resources: NodeResources, token: Path, temp_dir: Path
) -> dict[str, str]:
    """Return the environment of all components of this node: Ray and its workers, the preflight, the driver.

    Args:
        hosts: names of the nodes of the job.
        token: the file that holds the token; the token itself is in no environment.
        temp_dir: Ray's temporary folder; vLLM puts its sockets there, which need a short path too.
    """
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "true",  # else vLLM's processes survive a killed engine
        "RAY_worker_niceness": "0",  # with Ray's default of 15, other jobs on a shared node would slow the work down
        "VLLM_HOST_IP": ip,
        "VLLM_RPC_BASE_PATH": str(temp_dir),
        RUN_VARIABLE: temp_dir.name,
        "MEDSSR_NODE_IP": ip,
        "MEDSSR_NODES": " ".join(hosts),
        "MEDSSR_PORTS": f"{block.first + 1}-{block.last}",
        "MEDSSR_SLOTS": str(slots),
        "PYTHONUNBUFFERED": "1",
    }
    if not resources.gpus:
        env["MEDSSR_DEVICE"] = "cpu"
    interface = next((name for name, address in list_interfaces().items() if address == ip), None)
    if interface:
        env |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return env
