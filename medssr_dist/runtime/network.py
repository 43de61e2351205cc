"""The address at which other nodes reach this one: one rule for Ray, gloo, NCCL and the preflight."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from medssr_dist.errors import InputError

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_IPV6 = Path("/proc/net/if_inet6")  # address, index, prefix, scope, flags and name of each interface
_HOST_SCOPE, _LINK_SCOPE = "10", "20"
_ANY_PORT = 9  # connecting a UDP socket sends nothing


def list_interfaces() -> dict[str, str]:
    """Return interface -> IPv4 address, for the interfaces that have one.

    Example: {"lo": "127.0.0.1", "eth0": "10.0.0.3"}
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def find_node_address(peers: Sequence[str] = ()) -> str:
    """Return this node's IPv4 address.

    The first of these that exists: $MEDSSR_NODE_IP; the address of interface $MEDSSR_IFNAME; the address from which
    one of `peers` (host names) is reached; the address of the first interface except loopback; 127.0.0.1.

    Raises:
        InputError: MEDSSR_NODE_IP is no IPv4 address, MEDSSR_IFNAME names no interface with one, or there are peers and
            the network has IPv6 addresses alone.
    """
    if given := os.environ.get("MEDSSR_NODE_IP"):
        return _require_ipv4(given)
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
    address = next(routed, None) or next(others, None)
    if address is None and peers and (ipv6 := _list_ipv6_interfaces()):
        raise InputError(
            f"{platform.node()} has IPv6 alone ({', '.join(ipv6)}), and Ray between nodes needs IPv4; ask for "
            "nodes with IPv4, set MEDSSR_IFNAME to an interface that has it, or use one node"
        )
    return address or "127.0.0.1"


def _require_ipv4(address: str) -> str:
    try:
        return str(IPv4Address(address))
    except ValueError:
        raise InputError(
            f"MEDSSR_NODE_IP = {address!r} is no IPv4 address, which Ray between nodes needs; correct it, or unset it"
        ) from None


def _list_ipv6_interfaces() -> list[str]:
    """Return the interfaces with an IPv6 address that other nodes can reach: not loopback, not link-local."""
    if not _IPV6.exists():
        return []
    rows = [line.split() for line in _IPV6.read_text("ascii").splitlines()]
    return sorted({row[5] for row in rows if row[3] not in (_HOST_SCOPE, _LINK_SCOPE)})


def describe(addresses: dict[str, str]) -> str:
    """Format interfaces and addresses in one line. Example: "lo 127.0.0.1, eth0 10.0.0.3"."""
    return ", ".join(f"{name} {address}" for name, address in addresses.items()) or "none"


def _address_towards(peer: str) -> str | None:
    """Return the source address of packets to `peer`; None if there is no route, or if `peer` is this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, _ANY_PORT))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else str(address)
