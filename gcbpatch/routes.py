"""The routing table: which addresses are brokered though they usually are not, and the reverse.

A table is text, a route a line: ``NETWORK WAY``, ways being

    gcb     listeners bound there are registered with a broker, connects there go through it
    dpf     listeners bound there get a mapping of the gateway
    direct  neither: ordinary sockets, whatever is configured (``kernel`` is the same)
    deny    nobody connects or sends there: EACCES; listeners bound there are the kernel's

The route with the longest prefix counts, of two for the same network the first; where none
fits, the usual rules do. Empty lines and what follows a # are passed over.

Tables of the GCB that came with Condor are read, too: ``GCB`` in capitals, masks as dotted
numbers, host bits behind the prefix, and ``*`` for all hosts. As there, ``*`` speaks of
destinations only: ``*/0 direct`` keeps no listener from being registered.

Pure: it must never read a file or resolve a name.
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

    DIRECT = "direct"
    GCB = "gcb"
    DPF = "dpf"
    DENY = "deny"


_WAYS = {way.value: way for way in Way} | {"kernel": Way.DIRECT}
_OLD_WAYS = {"GCB": Way.GCB}
_EVERYWHERE = ("*", "*/0")


@dataclass(frozen=True)
class Route:
    """One line; ``everywhere`` is one for ``*``, which says nothing of listeners."""

    network: Network
    way: Way
    everywhere: bool = False

    def __str__(self) -> str:
        """The route as text, which parse() reads."""
        return f"{'*/0' if self.everywhere else self.network} {self.way.value}"


@dataclass(frozen=True)
class Routes:
    """An ordered table, longest prefixes first."""

    table: tuple[Route, ...] = ()

    @property
    def current(self) -> Routes:
        """The table as it is now: this one, for it never changes (a RouteFile's does)."""
        return self

    @property
    def name(self) -> str:
        """What tells this table from another."""
        return str(self)

    @property
    def denies(self) -> bool:
        """Whether any route denies."""
        return any(route.way is Way.DENY for route in self.table)

    def way(self, host: str) -> Way | None:
        """Return the way to an IP literal; None where no route says anything."""
        return self._way(host, self.table)

    def way_at(self, host: str) -> Way | None:
        """Return what becomes of a listener bound to an IP literal; None as for way()."""
        return self._way(host, (route for route in self.table if not route.everywhere))

    def _way(self, host: str, table: Iterable[Route]) -> Way | None:
        if not self.table or not is_ip(host):
            return None
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        # A network of the other family contains nothing of ours.
        return next((route.way for route in table if address in route.network), None)

    def __str__(self) -> str:
        """The table as text, which parse() reads."""
        return "\n".join(dict.fromkeys(map(str, self.table)))


def parse(text: str) -> Routes:
    """Read a table; raises ValueError naming the line and what would be right."""
    lines = ((n, line.partition("#")[0].split()) for n, line in enumerate(text.splitlines(), 1))
    return from_pairs((f"line {number}", words) for number, words in lines if words)


def from_pairs(entries: Iterable[tuple[str, list[str]]]) -> Routes:
    """Build a table out of (where it stands, [network, way]); raises ValueError."""
    found = [route for where, words in entries for route in _routes(where, words)]
    found.sort(key=lambda route: route.network.prefixlen, reverse=True)
    return Routes(tuple(found))


def _routes(where: str, words: list[str]) -> list[Route]:
    try:
        network, word = words
        way = _OLD_WAYS.get(word) or _WAYS.get(word)
        if way is None:
            raise ValueError(f"{word!r} is not a way")
        if network in _EVERYWHERE:
            return [Route(ipaddress.ip_network(n), way, True) for n in ("0.0.0.0/0", "::/0")]
        return [Route(ipaddress.ip_network(network, strict=word not in _OLD_WAYS), way)]
    except ValueError as error:
        raise ValueError(
            f"{where}: {' '.join(words)!r} is not a route ({error}); "
            "'192.0.2.0/24 gcb' would be (ways are direct, gcb, dpf and deny)"
        ) from None
