"""The routing table: which addresses are brokered though they usually are not, and the reverse.

A table is text, a route a line: ``NETWORK WAY``, ways being

    gcb     listeners bound there are registered with a broker, connects there go through it
    dpf     listeners bound there get a mapping of the gateway
    kernel  neither: ordinary sockets, whatever is configured

The route with the longest prefix counts; where none fits, the usual rules do. Empty lines
and what follows a # are passed over. Pure: it must never read a file or resolve a name.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from .addresses import is_ip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Way(enum.Enum):
    """How the addresses of a network are reached."""

    GCB = "gcb"
    DPF = "dpf"
    KERNEL = "kernel"


@dataclass(frozen=True)
class Routes:
    """An ordered table, longest prefixes first."""

    table: tuple[tuple[Network, Way], ...] = ()

    def way(self, host: str) -> Way | None:
        """Return the way for an IP literal; None where no route says anything."""
        if not self.table or not is_ip(host):
            return None
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        fitting = (w for net, w in self.table if net.version == address.version and address in net)
        return next(fitting, None)

    def __str__(self) -> str:
        """The table as text, which parse() reads."""
        return "\n".join(f"{network} {way.value}" for network, way in self.table)


def parse(text: str) -> Routes:
    """Read a table; raises ValueError naming the line and what would be right."""
    lines = ((n, line.partition("#")[0].split()) for n, line in enumerate(text.splitlines(), 1))
    return from_pairs((f"line {number}", words) for number, words in lines if words)


def from_pairs(entries: Iterable[tuple[str, list[str]]]) -> Routes:
    """Build a table out of (where it stands, [network, way]); raises ValueError."""
    found = [_route(where, words) for where, words in entries]
    found.sort(key=lambda route: route[0].prefixlen, reverse=True)
    return Routes(tuple(found))


def _route(where: str, words: list[str]) -> tuple[Network, Way]:
    try:
        network, way = words
        return ipaddress.ip_network(network), Way(way)
    except ValueError as error:
        raise ValueError(
            f"{where}: {' '.join(words)!r} is not a route ({error}); "
            "'192.0.2.0/24 gcb' would be (ways are gcb, dpf and kernel)"
        ) from None
