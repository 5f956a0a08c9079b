"""The chain tree of the iptables back end: names of chains, and rules as the kernel lays them out.

Public ports are in chains of 256 by host and protocol, the sources of UDP listeners in one chain
a host. A rule made here costs microseconds; python-iptables has a C library parse its words.
Pure: rules in, bytes out. Layouts: struct ipt_entry and what follows it.
"""

from __future__ import annotations

import re
import socket
import struct

from gcbpatch.addresses import Address
from gcbpatch.wire.messages import UDP

from ..reconcile import Rule

ROOT, AFTER, SOURCES = "DPFD", "DPFD-AFTER", "DPFD-SOURCES"
BLOCK = 256
BLOCK_NAME = re.compile(r"DPFD-(U-)?([0-9A-F]{8})-([0-9A-F]{2})")
SOURCE_NAME = re.compile(r"DPFD-S-([0-9A-F]{8})")
OWN_NAME = re.compile(r"DPFD-P-([0-9A-F]{8})-([0-9A-F]{4})-([0-9A-F]{4})")

_TCP, _ANY = 6, (0, 65535)
_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_REST = struct.Struct("=IHHIQQ")
_ENTRY_SIZE, _MATCH_SIZE = 112, 48
_MATCH = struct.Struct("=H29sBHHHH8x")
_TARGET = struct.Struct("=H29sB")
_SNAT = struct.Struct("=II4s4s2s2s4x")
_DNAT = struct.Struct("=I4s12x4s12x2s2s8x")
"""nf_nat_ipv4_multi_range_compat, and nf_nat_range2: what iptables 1.8 itself uses."""
_BOTH = 3
"""NF_NAT_RANGE_MAP_IPS and PROTO_SPECIFIED: an address and a port."""


def block(rule: Rule) -> str:
    """Return the chain that a rule belongs into."""
    kind = "U-" if rule.protocol == UDP else ""
    return f"{ROOT}-{kind}{_digits(rule.public[0])}-{rule.public[1] // BLOCK:02X}"


def block_jump(name: str) -> bytes:
    """Return the jump to a block's chain: which protocol, host and ports, its name says."""
    kind, host, number = _groups(BLOCK_NAME, name)
    low = int(number, 16) * BLOCK
    ports = low, low + BLOCK - 1
    return _entry(UDP if kind else _TCP, (b"", _host(host)), _ANY, ports, _jump(name))


def forward(rule: Rule) -> bytes:
    """Return a mapping: from the public address to the one inside."""
    host, port = rule.public
    to, to_port = _bytes_of(rule.inside)
    body = _DNAT.pack(_BOTH, to, to, to_port, to_port)
    target = _TARGET.pack(_TARGET.size + len(body), b"DNAT", 2) + body
    return _entry(rule.protocol, (b"", socket.inet_aton(host)), _ANY, (port, port), target)


def source(inside: Address) -> str:
    """Return the chain of a host inside that has UDP listeners."""
    return f"{ROOT}-S-{_digits(inside[0])}"


def source_jump(name: str) -> bytes:
    """Return the jump to the chain of a host inside."""
    (host,) = _groups(SOURCE_NAME, name)
    return _entry(UDP, (_host(host), b""), None, None, _jump(name))


def leaving(rule: Rule) -> bytes:
    """Return what makes a UDP listener's datagrams leave from its public address."""
    host, port = rule.inside
    to, to_port = _bytes_of(rule.public)
    body = _SNAT.pack(1, _BOTH, to, to, to_port, to_port)
    target = _TARGET.pack(_TARGET.size + len(body), b"SNAT", 0) + body
    return _entry(rule.protocol, (socket.inet_aton(host), b""), (port, port), _ANY, target)


def plain_jump(name: str) -> bytes:
    """Return a jump without a condition."""
    return _entry(0, (b"", b""), None, None, _jump(name))


def own(host: str, low: int, high: int) -> str:
    """Return the chain of what one dpfd does after routing, for one of its public hosts."""
    return f"{ROOT}-P-{_digits(host)}-{low:04X}-{high:04X}"


def own_name(name: str) -> tuple[str, int, int] | None:
    """Read such a name; None if it is another."""
    found = OWN_NAME.fullmatch(name)
    if found is None:
        return None
    host, low, high = found.groups()
    return socket.inet_ntoa(_host(host)), int(low, 16), int(high, 16)


def _entry(
    protocol: int,
    hosts: tuple[bytes, bytes],
    sources: tuple[int, int] | None,
    destinations: tuple[int, int] | None,
    target: bytes,
) -> bytes:
    """Put an entry together; an empty host stands for any."""
    (source, destination), any_host = hosts, bytes(4)
    masks = (b"\xff" * 4 if host else any_host for host in hosts)
    addresses = (source or any_host, destination or any_host, *masks)
    head = _IP.pack(*addresses, b"", b"", b"", b"", protocol, 0, 0)
    match = b""
    if sources is not None and destinations is not None:
        name = b"udp" if protocol == UDP else b"tcp"
        match = _MATCH.pack(_MATCH_SIZE, name, 0, *sources, *destinations)
    at = _ENTRY_SIZE + len(match)
    return head + _REST.pack(0, at, at + len(target), 0, 0, 0) + match + target


def _bytes_of(address: Address) -> tuple[bytes, bytes]:
    return socket.inet_aton(address[0]), address[1].to_bytes(2, "big")


def _jump(name: str) -> bytes:
    return _TARGET.pack(40, name.encode(), 0) + bytes(8)


def _digits(host: str) -> str:
    return socket.inet_aton(host).hex().upper()


def _host(digits: str) -> bytes:
    return bytes.fromhex(digits)


def _groups(pattern: re.Pattern[str], name: str) -> tuple[str, ...]:
    found = pattern.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no chain of dpfd's")
    return found.groups()
