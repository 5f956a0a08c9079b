"""Reads rules out of the kernel's own layout (struct ipt_entry). Pure: bytes in, fields out.

python-iptables reads a parameter by having a C library print it, to a standard output turned
into a pipe for that moment; this reads it where it stands. It must never guess: what has not
the layout of <linux/netfilter_ipv4/ip_tables.h> is no forwarding rule.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..reconcile import Rule
from .port import Claim

ANY_PORT = (0, 65535)

_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_OFFSETS = struct.Struct("=IHH")
_ENTRY_SIZE = 112  # ipt_ip, nfcache, two offsets, comefrom, two counters
_EXTENSION = struct.Struct("=H29sB")
_PORTS = struct.Struct("=4H")  # source and destination ranges of xt_tcp and xt_udp
_NAT_RANGES = {  # by the revision of the DNAT target: nf_nat_ipv4_multi_range_compat, nf_nat_range
    0: struct.Struct("=8x4s4x2s"),
    1: struct.Struct("=4x4s28x2s"),
    2: struct.Struct("=4x4s28x2s"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule: what it matches of a packet's destination, and its target.

    ``network`` and ``mask`` are numbers; ``ports`` are the ranges of destination ports, None
    if the rule does not look at them. ``to`` is where DNAT sends to. An entry with the target
    ERROR is no rule but the head of a chain: ``chain`` is its name then.
    """

    protocol: int
    network: int
    mask: int
    ports: tuple[tuple[int, int], ...] | None
    target: str
    to: tuple[str, int] | None
    chain: str = ""

    def rule(self) -> Rule | None:
        """Return this as one of dpfd's rules, or None if it does not look like one."""
        if self.to is None or self.mask != 0xFFFFFFFF or self.ports is None:
            return None
        if len(self.ports) != 1 or self.ports[0][0] != self.ports[0][1]:
            return None
        host = socket.inet_ntoa(self.network.to_bytes(4, "big"))
        return Rule(self.protocol, (host, self.ports[0][0]), self.to)

    def claims(self) -> Iterator[Claim]:
        """Yield which public ports somebody else's rule forwards.

        A rule that forwards all ports claims none: single ports go before it, as they do in
        every router that has an exposed host.
        """
        if self.target in ("DNAT", "REDIRECT") and self.ports is not None:
            for low, high in self.ports:
                yield Claim(self.protocol, self.network, self.mask, low, high)


def parse_entry(data: bytes) -> Entry:
    """Read one struct ipt_entry with its matches and its target.

    Raises ValueError if the sizes in it contradict each other.
    """
    try:
        return _parsed(data)
    except struct.error as error:
        raise ValueError(f"no iptables entry: {error}") from error


def _parsed(data: bytes) -> Entry:
    _, destination, _, mask, *_, protocol, _, _ = _IP.unpack_from(data)
    _, target_offset, next_offset = _OFFSETS.unpack_from(data, _IP.size)
    if not _ENTRY_SIZE <= target_offset < next_offset <= len(data):
        raise ValueError(f"no iptables entry: target at {target_offset}, end at {next_offset}")
    ports = None
    for name, _, body in _extensions(data[_ENTRY_SIZE:target_offset]):
        ports = _ports(name, body) or ports
    name, revision, body = next(_extensions(data[target_offset:next_offset]))
    return Entry(
        protocol,
        int.from_bytes(destination, "big"),
        int.from_bytes(mask, "big"),
        ports,
        name,
        _destination(revision, body) if name == "DNAT" else None,
        body.split(b"\0", 1)[0].decode("ascii", "replace") if name == "ERROR" else "",
    )


def _extensions(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, revision and body of each match (or of the one target)."""
    while data:
        size, name, revision = _EXTENSION.unpack_from(data)
        if not _EXTENSION.size <= size <= len(data):
            raise ValueError(f"no iptables entry: an extension of {size} bytes")
        # Whoever made the rule may have left anything behind the end of the name.
        plain = name.split(b"\0", 1)[0].decode("ascii", "replace")
        yield plain, revision, data[_EXTENSION.size : size]
        data = data[size:]


def _ports(match: str, body: bytes) -> tuple[tuple[int, int], ...] | None:
    if match in ("tcp", "udp"):
        _, _, low, high = _PORTS.unpack_from(body)
        return None if (low, high) == ANY_PORT else ((low, high),)
    return _many_ports(body) if match == "multiport" else None


def _many_ports(body: bytes) -> tuple[tuple[int, int], ...] | None:
    """xt_multiport_v1: what is matched, a count, 15 ports, 15 marks "a range begins here"."""
    kind, count, *rest = struct.unpack_from("=BB15H15B", body)
    ports, marks = rest[:15], rest[15:]
    if kind == 0:  # source ports
        return None
    ranges, index = [], 0
    while index < min(count, 15):
        width = 1 if marks[index] and index + 1 < 15 else 0
        ranges.append((ports[index], ports[index + width]))
        index += 1 + width
    return tuple(ranges)


def _destination(revision: int, body: bytes) -> tuple[str, int] | None:
    layout = _NAT_RANGES.get(revision)
    if layout is None:
        return None
    host, port = layout.unpack_from(body)
    return socket.inet_ntoa(host), int.from_bytes(port, "big")
