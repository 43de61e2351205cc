"""The address of this node among others: IPv4, and a network that has none is refused at once."""

from __future__ import annotations

import pytest

from medssr_dist.errors import InputError
from medssr_dist.runtime import network
from medssr_dist.runtime.network import find_node_address

LOOPBACK = {"lo": "127.0.0.1"}
IPV6 = """\
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
fd000000000000000000000000000002 05 40 00 82     ib0
00000000000000000000000000000001 01 80 10 80       lo
"""


@pytest.fixture
def node(monkeypatch, tmp_path):
    """node(interfaces, ipv6="") makes this node have these addresses alone; no peer is reached."""
    for name in ("MEDSSR_NODE_IP", "MEDSSR_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "_address_towards", lambda peer: None)

    def have(interfaces, ipv6=""):
        (tmp_path / "if_inet6").write_text(ipv6)
        monkeypatch.setattr(network, "_IPV6", tmp_path / "if_inet6")
        monkeypatch.setattr(network, "list_interfaces", lambda: interfaces)

    return have


def test_ipv6_alone_is_refused_between_nodes(node):
    node(LOOPBACK, IPV6)
    with pytest.raises(InputError, match=r"IPv6 alone \(ib0\).*MEDSSR_IFNAME"):
        find_node_address(["n2"])


def test_one_node_needs_no_network(node):
    node(LOOPBACK, IPV6)
    assert find_node_address() == "127.0.0.1"


@pytest.mark.parametrize("ipv6", ["", IPV6.splitlines()[0] + "\n"])
def test_hosts_on_one_machine_may_have_loopback_alone(node, ipv6):
    node(LOOPBACK, ipv6)
    assert find_node_address(["n2"]) == "127.0.0.1"


def test_ipv4_beside_ipv6_is_used(node):
    node(LOOPBACK | {"eth0": "10.0.0.3"}, IPV6)
    assert find_node_address(["n2"]) == "10.0.0.3"


@pytest.mark.parametrize("given", ["fd00::2", "node7", "10.0.0"])
def test_a_given_address_must_be_ipv4(node, monkeypatch, given):
    node(LOOPBACK)
    monkeypatch.setenv("MEDSSR_NODE_IP", given)
    with pytest.raises(InputError, match=f"MEDSSR_NODE_IP = '{given}' is no IPv4 address"):
        find_node_address(["n2"])
    monkeypatch.setenv("MEDSSR_NODE_IP", "10.0.0.4")
    assert find_node_address(["n2"]) == "10.0.0.4"
