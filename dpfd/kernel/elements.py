"""Elements of dpfd's nftables maps, as netlink carries them. Pure: rules in, bytes out, and back.

Both maps go from protocol, address, port to address, port: ``ports`` from public to inside,
``sources`` (UDP) from inside to public. A key is three, a value two fields of four bytes, each
filled up on the right. Layout: <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from gcbpatch.addresses import Address, format_address

from . import netlink

SET, GET, DELETE = 0x0A0C, 0x0A0D, 0x0A0E
"""NFT_MSG_NEWSETELEM, GETSETELEM and DELSETELEM of the subsystem nftables."""
IPV4 = 2
PER_MESSAGE = 500
"""Elements that fit into one message: an attribute has at most 65,535 bytes."""

_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ELEMENT, _KEY, _DATA, _TIMEOUT, _VALUE = 1, 1, 2, 4, 1
_NESTED = 0x8000
_KEY_FIELDS = struct.Struct("!B3x4sH2x")
_VALUE_FIELDS = struct.Struct("!4sH2x")
_WHOLE = struct.Struct("=HHHHHH12sHHHH8sHH8s")
_KEY_HEAD = struct.pack("=HHHH", 20, _KEY, 16, _VALUE)
_DATA_HEAD = struct.pack("=HHHH", 16, _DATA, 12, _VALUE)
_BARE = struct.Struct("=HHHHHH12s")


class Element(NamedTuple):
    """One entry of a map: ``place`` (protocol and address) leads to ``to``."""

    protocol: int
    place: Address
    to: Address

    def __str__(self) -> str:
        return f"{format_address(self.place)} to {format_address(self.to)}"

    def shown(self, lease: int) -> str:
        """Return the key as nft writes it; with a lease (seconds), the whole element."""
        protocol = {6: "tcp", 17: "udp"}.get(self.protocol, str(self.protocol))
        key = " . ".join([protocol, self.place[0], str(self.place[1])])
        return f"{key} timeout {lease}s : {self.to[0]} . {self.to[1]}" if lease else key

    @property
    def key(self) -> bytes:
        """The key's bytes."""
        host, port = self.place
        return _KEY_FIELDS.pack(self.protocol, socket.inet_aton(host), port)

    def whole(self, lifetime: int) -> bytes:
        """Return key, value and lifetime (milliseconds) as an element to set."""
        value = _VALUE_FIELDS.pack(socket.inet_aton(self.to[0]), self.to[1])
        head = (52, _ELEMENT | _NESTED, 20, _KEY | _NESTED, 16, _VALUE, self.key)
        data = (16, _DATA | _NESTED, 12, _VALUE, value)
        return _WHOLE.pack(*head, *data, 12, _TIMEOUT, lifetime.to_bytes(8, "big"))

    def bare(self) -> bytes:
        """Return the key as an element to look up or to remove."""
        return _BARE.pack(24, _ELEMENT | _NESTED, 20, _KEY | _NESTED, 16, _VALUE, self.key)


def where(table: str, name: str) -> bytes:
    """Return the attributes that name a map, which every message begins with."""
    return netlink.text(_TABLE, table) + netlink.text(_SET, name)


def message(kind: int, place: bytes, parts: Iterable[bytes], words: str) -> netlink.Request:
    """Return a request for elements of the map at ``place``."""
    flags = netlink.CREATE if kind == SET else 0
    return netlink.Request(kind, flags, IPV4, place + netlink.nest(_ELEMENTS, *parts), words)


def parse(bodies: Iterable[bytes]) -> list[Element]:
    """Read what a dump of a map has answered. Raises ValueError if it is no such map."""
    return [_element(data) for data in raw(bodies)]


def raw(bodies: Iterable[bytes]) -> list[bytes]:
    """Return each element's attributes as they stand, of any set."""
    found = []
    for body in bodies:
        for kind, value in netlink.attributes(body):
            if kind == _ELEMENTS:
                found += [data for _, data in netlink.attributes(value)]
    return found


def _element(data: bytes) -> Element:
    try:
        key, value = _fields(data)
        protocol, host, port = _KEY_FIELDS.unpack(key)
        inside, inside_port = _VALUE_FIELDS.unpack(value)
    except (KeyError, struct.error) as error:
        raise ValueError(f"no element of a map of dpfd's: {error!r}") from error
    place, to = (socket.inet_ntoa(host), port), (socket.inet_ntoa(inside), inside_port)
    return Element(protocol, place, to)


def _fields(data: bytes) -> tuple[bytes, bytes]:
    """Return key and value. Raises KeyError if there are none, ValueError if sizes are wrong."""
    if data[:8] == _KEY_HEAD and data[20:28] == _DATA_HEAD:  # as kernels do; 50,000 take a while
        return data[8:20], data[28:36]
    fields = dict(netlink.attributes(data))
    key, value = (dict(netlink.attributes(fields[kind])) for kind in (_KEY, _DATA))
    return key[_VALUE], value[_VALUE]
