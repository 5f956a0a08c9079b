"""Datagrams between a program's port and its broker's relay port: a header in front of each.

Those that go from one program's port to another's, past the relay, have the same header, of
another kind, and a tag: D5, 0, the sender's port and host, 8 octets that only he was told.

    offset size
    0      1    kind: D4 whole, E4 one of two parts, F4 refused; D6, E6, F6 for a peer by IPv6
    1      1    0 in a whole datagram; 1 in the first part of two, 2 in the second
    2      2    the peer's port
    4      4    the peer's host (16 octets of IPv6)
    8      4    only in parts: the number of the datagram that they are parts of
    ...    n    what the program sends or gets

One that says "refused" has no payload: the relay tells that the peer's host answered a datagram
with ICMP's "port unreachable".

The header names the peer (TURN's ChannelData has a number instead, RFC 8656, section 12),
so there is no table at either end and no round trip before anybody's first datagram. What is
too large to have a header goes in two parts. Numbers are big-endian.

This room must never keep parts without bound, and never raise anything but
RemoteProtocolError for what came from the network.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from ..addresses import Address, pack_host, unpack_host
from ..errors import LocalProtocolError, RemoteProtocolError, Status
from .codec import MAGIC as frame_magic

MOST_PAYLOAD = 65507
"""What a datagram over IPv4 can hold: 65535 less the IP and UDP headers."""
MOST_PAYLOAD_6 = 65527
"""The same over IPv6, whose own header does not count."""
MOST_HEADER = 24

WHOLE_4, PART_4, REFUSED_4 = 0xD4, 0xE4, 0xF4
WHOLE_6, PART_6, REFUSED_6 = 0xD6, 0xE6, 0xF6
DIRECT_4 = 0xD5
CONTROL_BIT = 0x80
"""Clear in the first octet of whatever is not a datagram of a program's."""
MAGIC_SIZE = 8
"""Octets before a control frame that goes to the relay from a program's port, or back."""

HEADER_4, HEADER_6 = 8, 20
TAG_SIZE = 8
DIRECT_SIZE = HEADER_4 + TAG_SIZE
"""Octets before a payload that goes past the relay."""
_HEAD = struct.Struct(">BBH")
_NUMBER = struct.Struct(">I")
_SIZES = {WHOLE_4: 8, PART_4: 12, REFUSED_4: 8, WHOLE_6: 20, PART_6: 24, REFUSED_6: 20}
_PARTS = {PART_4: (1, 2), PART_6: (1, 2)}

MOST_OPEN = 16
"""Datagrams of which one part is here; the oldest goes first."""
PART_SECONDS = 5.0
"""How long one part waits for the other."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a payload. ``part`` is 0 for a whole datagram, else 1 or 2."""

    peer: Address
    part: int
    number: int
    size: int
    refused: bool = False


def magic_of(chance: bytes) -> bytes:
    """Return the magic of a port: 8 octets that neither data nor commands begin with."""
    first = chance[0] & ~CONTROL_BIT
    return bytes([first ^ 1 if first == frame_magic[0] else first]) + chance[1:MAGIC_SIZE]


def whole(peer: Address) -> bytes:
    """Return the header of a datagram to or from ``peer``; raises LocalProtocolError."""
    host = _host(peer)
    return _HEAD.pack(WHOLE_4 if len(host) == 4 else WHOLE_6, 0, peer[1]) + host


def refused(peer: Address) -> bytes:
    """Return what says that nobody takes datagrams at ``peer``; raises LocalProtocolError."""
    host = _host(peer)
    return _HEAD.pack(REFUSED_4 if len(host) == 4 else REFUSED_6, 0, peer[1]) + host


def tag(listener: bytes, header: bytes) -> bytes:
    """Return what has to stand before data that comes to a port past the relay.

    ``listener`` is the port's id, which its peers are never told; ``header`` the header of
    the peer's that the relay would send. Every process that has the port works it out by
    itself.
    """
    return hashlib.blake2b(header, digest_size=TAG_SIZE, key=listener).digest()


def direct(header: bytes, tag: bytes) -> bytes:
    """Return what stands before a payload past the relay; ``header`` names its sender."""
    return bytes([DIRECT_4]) + header[1:HEADER_4] + tag


def undirected(listener: bytes, before: bytes) -> bytes | None:
    """Return the header that the relay would have sent; None if the tag is not the right one."""
    header = bytes([WHOLE_4]) + before[1:HEADER_4]
    right = hmac.compare_digest(tag(listener, header), before[HEADER_4:DIRECT_SIZE])
    return header if right else None


def parts(peer: Address, number: int) -> tuple[bytes, bytes]:
    """Return the headers of the two parts of datagram ``number``, counted modulo 2^32."""
    host = _host(peer)
    kind = PART_4 if len(host) == 4 else PART_6
    rest = host + _NUMBER.pack(number & 0xFFFFFFFF)
    return _HEAD.pack(kind, 1, peer[1]) + rest, _HEAD.pack(kind, 2, peer[1]) + rest


def _host(peer: Address) -> bytes:
    if not 0 < peer[1] < 65536:
        raise LocalProtocolError(f"{peer[1]} is no port that a datagram could go to")
    try:
        return pack_host(peer[0])
    except ValueError as error:
        raise LocalProtocolError(str(error)) from error


def parse(data: bytes | bytearray | memoryview) -> Header:
    """Read the header that ``data`` (at most the whole datagram) begins with.

    Raises RemoteProtocolError when it is none.
    """
    size = _SIZES.get(data[0]) if len(data) >= HEADER_4 else None
    if size is None or len(data) < size:
        raise RemoteProtocolError(Status.MALFORMED, "no header of a relayed datagram")
    kind, part, port = _HEAD.unpack_from(data)
    if part not in _PARTS.get(kind, (0,)) or not port:
        raise RemoteProtocolError(Status.MALFORMED, f"part {part} of kind {kind}, port {port}")
    end = size - 4 if part else size
    number = _NUMBER.unpack_from(data, end)[0] if part else 0
    refused = kind in (REFUSED_4, REFUSED_6)
    return Header((unpack_host(bytes(data[4:end])), port), part, number, size, refused)


class Parts:
    """First and second parts that wait for each other; bounded in number and in time."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._open: dict[tuple[Address, int], tuple[int, bytes, float]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def completes(self, header: Header, now: float) -> bool:
        """Return whether the other part is here, so that join() would give the whole."""
        known = self._open.get((header.peer, header.number))
        return known is not None and known[0] != header.part and now < known[2]

    def join(
        self, header: Header, payload: bytes, now: float, peeked: bool = False
    ) -> bytes | None:
        """Take a part; return the datagram when both are here.

        None also for one that would be larger than any datagram, which is dropped. A
        part that was only peeked at, and completes one, will come again.
        """
        key = header.peer, header.number
        if not self.completes(header, now):
            self._keep(key, header.part, payload, now)
            return None
        other = self._open[key][1]
        joined = payload + other if header.part == 1 else other + payload
        fits = len(joined) <= (MOST_PAYLOAD_6 if ":" in header.peer[0] else MOST_PAYLOAD)
        if not (peeked and fits):
            del self._open[key]
        return joined if fits else None

    def _keep(self, key: tuple[Address, int], part: int, payload: bytes, now: float) -> None:
        self._open.pop(key, None)
        self._open[key] = part, payload, now + PART_SECONDS
        for old in [k for k, (_, _, until) in self._open.items() if until <= now]:
            del self._open[old]
        while len(self._open) > self._most:
            del self._open[next(iter(self._open))]
