"""A block of ports that only this job uses on a node, below the kernel's range of ephemeral ports.

The first port of a block is bound for the life of the job, which keeps other jobs from taking the block. The others
are bound once, to see that they are free.
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
    """Ports `first` to `first` + SIZE - 1; `guard` is the socket bound to the first.

    Example: PortBlock(first=10500, guard=socket), for ports 10500 to 10999
    """

    first: int
    guard: socket.socket

    @property
    def gcs(self) -> int:
        """The port of Ray's control service, if this node is the head."""
        return self.first + 1

    @property
    def last(self) -> int:
        return self.first + SIZE - 1

    def ray_options(self, head: bool) -> list[str]:
        """Return the port options of `ray start`, for the head or for another node."""
        named = {name: self.first + 1 + index for index, name in enumerate(_NAMED)}
        options = [f"--{name}={port}" for name, port in named.items() if head or name not in _HEAD_ONLY]
        workers = self.first + 1 + len(_NAMED)
        return [*options, f"--min-worker-port={workers}", f"--max-worker-port={self.last}"]


def claim_ports(ip: str, job: int) -> PortBlock:
    """Claim the first block on `ip` whose ports are all free. The job id `job` chooses where the search starts.

    Raises:
        NoPorts: no block is free.
    """
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
    """Return where the kernel's ephemeral range begins, or 32768 if it leaves no room below."""
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
