"""Which of its addresses a node is reached at by the others: the one rule for Ray, gloo, NCCL and the preflight."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
from collections.abc import Sequence

from medssr_dist.errors import InputError

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_ANY_PORT = 9  # nothing is sent


def list_interfaces() -> dict[str, str]:
    """Interface -> its IPv4 address, of those that have one. Example: {"lo": "127.0.0.1", "eth0": "10.0.0.3"}."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def find_node_address(peers: Sequence[str] = ()) -> str:
    """This node's IPv4 address: $MEDSSR_NODE_IP, else that of interface $MEDSSR_IFNAME, else the one that routes to
    one of `peers` (host names), else that of the first interface beside loopback.

    Raises:
        InputError: MEDSSR_IFNAME names no interface that has an address.
    """
    if given := os.environ.get("MEDSSR_NODE_IP"):
        return given
    found = list_interfaces()
    if wanted := os.environ.get("MEDSSR_IFNAME"):
        if wanted not in found:
            raise InputError(
                f"MEDSSR_IFNAME = {wanted!r} is no interface with an IPv4 address on {platform.node()}, which has "
                f"{describe(found)}; correct it in the cluster's file in launch/env.d"
            )
        return found[wanted]
    routed = filter(None, map(_address_towards, peers))
    others = (address for address in found.values() if not address.startswith("127."))
    return next(routed, None) or next(others, "127.0.0.1")


def describe(addresses: dict[str, str]) -> str:
    """Example: "lo 127.0.0.1, eth0 10.0.0.3"."""
    return ", ".join(f"{name} {address}" for name, address in addresses.items()) or "none"


def _address_towards(peer: str) -> str | None:
    """The address that packets to `peer` would leave from; None where there is no way, or it stays on this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, _ANY_PORT))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address
