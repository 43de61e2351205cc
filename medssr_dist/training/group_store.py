"""The stores through which the members of a process group find each other, closed to strangers as far as torch allows.

A TCPStore listens on all interfaces, and answers whoever connects. Ours listens on the one address that its members
use. The names in it begin with a part that only members know, and members prove to each other that they know the
group's secret before anything else is sent. What remains open is described in docs/security.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

Gather = Callable[[torch.Tensor], list[torch.Tensor]]  # uint8 [32] of each member, in the order of ranks


class StrangerError(RuntimeError):
    """A member of a process group does not know the group's secret."""


def make_group_secret() -> str:
    """Return a new secret for one process group; it travels to the members through Ray alone."""
    return secrets.token_hex(32)


class GroupStore:
    """One member's connection to the store of a process group.

    Args:
        address: IPv4 address or host name at which the members reach the store.
        port: its port; 0 in rank 0, which opens the store, for a free one.
        secret: the group's secret.

    Attributes:
        port: the port of the store.
        names: the store, as process groups use it: its names begin with a part that only members know.
    """

    def __init__(self, address: str, port: int, rank: int, secret: str, timeout: timedelta):
        self._rank, self._secret = rank, secret
        listening = _listen(address, port) if rank == 0 else None
        self._store = TCPStore(
            address,
            listening.getsockname()[1] if listening else port,
            is_master=rank == 0,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listening.detach() if listening else None,
        )
        self.port = self._store.port
        self.names = PrefixStore(_prove(secret, "names").hex(), self._store)

    def check_members(self, gather: Gather) -> None:
        """Compare what every member sends with what only a member can know. All members call it.

        Args:
            gather: all-gather of the group.

        Raises:
            StrangerError: a member has sent something else; the message names its rank.
        """
        own = _prove(self._secret, f"rank {self._rank}")
        for rank, sent in enumerate(gather(torch.tensor(list(own), dtype=torch.uint8))):
            if not hmac.compare_digest(bytes(sent.tolist()), _prove(self._secret, f"rank {rank}")):
                raise StrangerError(
                    f"rank {rank} of a process group does not know the group's secret; a stranger joined"
                )


def join_ranks(secret: str, backend: str, timeout: timedelta) -> None:
    """Make torch's default process group of the ranks that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Args:
        backend: "gloo" or "nccl".

    Raises:
        StrangerError: a member does not know the secret.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = GroupStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, secret, timeout)
    dist.init_process_group(backend, store=store.names, rank=rank, world_size=world, timeout=timeout)
    device = "cuda" if backend == "nccl" else "cpu"

    def gather(own: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(own, device=device) for _ in range(world)]
        dist.all_gather(found, own.to(device))
        return found

    store.check_members(gather)


def _listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens on this address alone."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    listening.listen()
    return listening


def _prove(secret: str, what: str) -> bytes:
    return hmac.new(secret.encode(), what.encode(), hashlib.sha256).digest()
