"""What a node supervisor starts Ray with: explicit address, resources, ports and temporary directory; a token."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.launch.ports import PortBlock
from medssr_dist.runtime.network import list_interfaces

_STORE_SHARE, _STORE_LEAST, _STORE_MOST = 0.1, 200 * 2**20, 16 * 2**30  # our objects are prompts and texts


@dataclass(frozen=True)
class NodeResources:
    """This node's share of the job. `gpus` 0: a CPU node, whose logical GPUs the launcher gives as slots."""

    cpus: int
    gpus: int
    memory_mib: int

    @classmethod
    def of_job(cls) -> NodeResources:
        """From the environment that Slurm gives a task."""
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        per_cpu = int(os.environ.get("SLURM_MEM_PER_CPU") or 0) * cpus
        asked = int(os.environ.get("SLURM_MEM_PER_NODE") or 0) or per_cpu
        return cls(cpus, int(os.environ.get("SLURM_GPUS_ON_NODE") or 0), min(asked, total) or total)


def build_ray_command(
    head: str | None, ip: str, block: PortBlock, resources: NodeResources, slots: int, temp_dir: Path
) -> list[str]:
    """`ray start` of the head (`head` None) or of a node that joins the head at that address.

    Args:
        slots: logical GPUs of a CPU node; not used where it has real ones.
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
    ip: str, block: PortBlock, slots: int, hosts: list[str], resources: NodeResources, token: Path
) -> dict:
    """Environment of everything that runs on this node: Ray and its workers, the preflight, the driver."""
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "true",  # else vLLM's own processes outlive a killed engine
        "RAY_worker_niceness": "0",  # Ray's own 15 makes the work yield to whatever else a shared node runs
        "VLLM_HOST_IP": ip,
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
