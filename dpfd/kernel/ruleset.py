"""The fixed part of dpfd's nftables table, as text for nft. Pure.

One rule translates whatever the map ``ports`` knows, however many mappings that are; one makes
what a UDP listener sends leave from its public port; two give a neighbour that uses a public
address that address as its source (RFC 5382, REQ-8), so that answers come back through the
gateway. The chains come a little before those that others commonly make: a single port goes
before an exposed host. Several dpfds share the table; what differs between them is in sets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from .port import Layout

TABLE = "dpfd"
PORTS, SOURCES = "ports", "sources"
CHAINS = ("prerouting", "output", "postrouting", "hairpin")
FIXED_SETS = ("hosts", "networks", "inner", "ranges")
"""Sets that change with the settings only."""

_MAP = "inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service"
_STRUCTURE = f"""\
add table ip dpfd
add map ip dpfd ports {{ type {_MAP}; flags timeout; }}
add map ip dpfd sources {{ type {_MAP}; flags timeout; }}
add map ip dpfd hosts {{ type ipv4_addr : ipv4_addr; }}
add set ip dpfd networks {{ type ipv4_addr; flags interval; }}
add set ip dpfd inner {{ type ifname; }}
add set ip dpfd ranges {{ type inet_service; flags interval; }}
"""
_TO_INSIDE = "dnat ip addr . port to meta l4proto . ip daddr . th dport map @ports"
_TO_PUBLIC = "snat ip addr . port to meta l4proto . ip saddr . th sport map @sources"
_HAIRPIN = "ct status dnat oifname @inner ct original proto-dst @ranges jump hairpin"
_RULES = f"""\
add chain ip dpfd prerouting {{ type nat hook prerouting priority dstnat - 5; }}
add chain ip dpfd output {{ type nat hook output priority -105; }}
add chain ip dpfd postrouting {{ type nat hook postrouting priority srcnat - 5; }}
add chain ip dpfd hairpin
flush chain ip dpfd prerouting
flush chain ip dpfd output
flush chain ip dpfd postrouting
flush chain ip dpfd hairpin
add rule ip dpfd prerouting {_TO_INSIDE}
add rule ip dpfd output {_TO_INSIDE}
add rule ip dpfd postrouting meta l4proto udp oifname != @inner {_TO_PUBLIC}
add rule ip dpfd postrouting ip saddr != @networks return
add rule ip dpfd postrouting meta l4proto tcp {_HAIRPIN}
add rule ip dpfd postrouting meta l4proto udp {_HAIRPIN}
add rule ip dpfd hairpin meta l4proto udp ct original ip daddr @hosts {_TO_PUBLIC}
add rule ip dpfd hairpin snat ip to ct original ip daddr map @hosts
"""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the sets hold for other dpfds on the gateway, as nft writes it."""

    hosts: tuple[str, ...] = ()
    inside: tuple[tuple[str, str], ...] = ()
    """Interfaces and networks, in any pairs: the sets do not hold which belongs to which."""
    ranges: tuple[tuple[int, int], ...] = ()


def script(layout: Layout, others: Sharing) -> str:
    """Return what makes the table as it should be, in one transaction; the maps stay."""
    inside = sorted({*layout.inside, *others.inside})
    # One that overlaps was this dpfd's own, before its settings were changed.
    apart = [one for one in others.ranges if not layout.overlaps(*one)]
    ranges = sorted({(layout.low, layout.high), *apart})
    hosts = sorted({*layout.hosts, *others.hosts})
    elements = {
        "hosts": [f"{host} : {host}" for host in hosts],
        "networks": _joined(network for _, network in inside),
        "inner": [f'"{name}"' for name in sorted({interface for interface, _ in inside})],
        "ranges": [f"{low}-{high}" for low, high in ranges],
    }
    lines = [_filled(name, of) for name, of in elements.items()]
    return _STRUCTURE + "".join(lines) + _RULES


def _joined(networks: Iterable[str]) -> list[str]:
    """Return networks that do not overlap, as a set of nft's wants them."""
    parsed = (ipaddress.IPv4Network(network) for network in networks)
    return [str(network) for network in ipaddress.collapse_addresses(parsed)]


def _filled(name: str, elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    filling = f"add element ip dpfd {name} {{ {listed} }}\n" if listed else ""
    return f"flush {'map' if name == 'hosts' else 'set'} ip dpfd {name}\n{filling}"
