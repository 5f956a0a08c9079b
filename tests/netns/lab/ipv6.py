"""IPv6 in a lab: for those nodes that a test gives it to, beside IPv4 or instead of it.

Addresses are made of the IPv4 ones, all of them global (RFC 3849), and nothing is translated.
A gateway routes its inside and, as its rules say for both families, lets nothing in that nobody
inside has asked for: the firewall of a home's router.
"""

import ipaddress

from tests.netns.lab.network import Network
from tests.netns.lab.nodes import Gateway, Node
from tests.netns.lab.space import Space


def ipv6_of(address: str) -> str:
    """The IPv6 address of who has this IPv4 one."""
    return str(ipaddress.IPv6Address(_prefix(address) + int(address.rpartition(".")[2])))


def _prefix(address: str) -> int:
    a, b, c, _ = map(int, address.split("."))
    return int(ipaddress.IPv6Address("2001:db8::")) + (a << 88) + (b << 80) + (c << 64)


def give_ipv6(*nodes: Node) -> None:
    """Let them speak IPv6, too; a gateway before those behind it."""
    for node in nodes:
        _route_in(node.network)
        _configure(node.space, node.interface, node.address)
        node.space.ip(f"route add default via {ipv6_of(node.network.router)}")
        if isinstance(node, Gateway):
            inside = ipaddress.IPv6Network((_prefix(node.inside_address), 64))
            node.network.space.ip(f"route add {inside} via {ipv6_of(node.address)}")


def take_ipv4(*nodes: Node) -> None:
    """From now on they speak IPv6 alone."""
    for node in nodes:
        own = node.network.with_prefix(node.address)
        node.space.ip(f"address delete {own} dev {node.interface}")


def _route_in(network: Network) -> None:
    """Have the namespace that routes for a network do so by IPv6."""
    space = network.space
    if network.has_ipv6:
        return
    network.has_ipv6 = True
    space.sysctl("net/ipv6/conf/all/forwarding", "1")
    _configure(space, network.bridge, network.router)


def _configure(space: Space, interface: str, address: str) -> None:
    space.sysctl(f"net/ipv6/conf/{interface}/disable_ipv6", "0")
    # Nobody else has it, and nobody waits until that is found out.
    space.ip(f"address add {ipv6_of(address)}/64 dev {interface} nodad")
