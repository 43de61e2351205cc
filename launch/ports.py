"""A block of ports of this job's own on one node, below the range that the kernel hands out.

The first port of the block is held for the life of the job: that claims the block among jobs that begin at the
same one. The others are bind-tested once.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

SIZE = 500
_FIRST = 10_000
_NAMED = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
_HEAD_ONLY = ("port", "ray-client-server-port", "dashboard-port")


class NoPorts(Exception):
    """Every block has a port in use."""


@dataclass(frozen=True)
class PortBlock:
    """Ports `first` to `first` + SIZE - 1; `guard` is the socket that holds the first."""

    first: int
    guard: socket.socket

    @property
    def gcs(self) -> int:
        return self.first + 1

    @property
    def last(self) -> int:
        return self.first + SIZE - 1

    def ray_options(self, head: bool) -> list[str]:
        """`ray start`'s port options; a worker node has none of the head's own."""
        named = {name: self.first + 1 + index for index, name in enumerate(_NAMED)}
        options = [f"--{name}={port}" for name, port in named.items() if head or name not in _HEAD_ONLY]
        workers = self.first + 1 + len(_NAMED)
        return [*options, f"--min-worker-port={workers}", f"--max-worker-port={self.last}"]


def claim_ports(ip: str, job: int) -> PortBlock:
    """The first wholly free block on `ip`, looked for from the place that `job` gives. Raises NoPorts."""
    blocks = (_ephemeral_start() - _FIRST) // SIZE
    for offset in range(blocks):
        first = _FIRST + (job + offset) % blocks * SIZE
        if (guard := _bind(ip, first)) is None:
            continue
        if _all_free(ip, range(first + 1, first + SIZE)):
            guard.listen()
            return PortBlock(first, guard)
        guard.close()
    raise NoPorts(f"no {SIZE} adjacent free ports on {ip} between {_FIRST} and {_ephemeral_start()}")


def _ephemeral_start() -> int:
    """Where the kernel's own range begins; 32768 where it leaves no room below."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return first if first >= _FIRST + 10 * SIZE else 32_768


def _all_free(ip: str, ports: range) -> bool:
    with ExitStack() as stack:
        return all((bound := _bind(ip, port)) and stack.enter_context(bound) for port in ports)


def _bind(ip: str, port: int) -> socket.socket | None:
    bound = socket.socket()
    try:
        bound.bind((ip, port))
    except OSError:
        bound.close()
        return None
    return bound
