"""What messages are made of: fields with their bounds, and what several messages contain.

Bounds stand here and beside the fields of each message, and are checked while decoding. This
room must never do anything: no I/O, no state, no clock.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from typing import Annotated

import msgspec
from msgspec import Meta

from ..addresses import Address

Port = Annotated[int, Meta(ge=0, le=65535)]
Protocol = Annotated[int, Meta(ge=6, le=17)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""A random 128-bit name: of a client (an agent) or of one of its listeners."""
Short = Annotated[bytes, Meta(min_length=8, max_length=8)]
"""64 bits: an epoch, a cookie, a nonce, or the name of a rendezvous."""
Proof = Annotated[bytes, Meta(min_length=16, max_length=16)]
Secret = Annotated[bytes, Meta(min_length=16, max_length=16)]
Nonce = Annotated[bytes, Meta(max_length=16)]
Milliseconds = Annotated[int, Meta(ge=0, le=60000)]
Claim = Annotated[bytes, Meta(max_length=16)]
Lifetime = Annotated[int, Meta(ge=0, le=86400)]
Wished = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""A lifetime that is asked for (PCP's 32 bits); what is granted is a Lifetime."""
Free = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Network = Annotated[str, Meta(max_length=64)]

Family = Annotated[int, Meta(ge=0, le=6)]

TCP, UDP = 6, 17


class PathKind(enum.IntEnum):
    """How two sides are joined (ICE's candidate pair types, RFC 8445)."""

    LOCAL = 1
    DIRECT = 2
    REVERSE = 3
    PUNCHED = 4
    RELAYED = 5


class Message(msgspec.Struct, array_like=True, frozen=True):
    """Base of all bodies."""


@functools.lru_cache(maxsize=1024)
def _check_host(host: str) -> None:
    ipaddress.ip_address(host)
    if "%" in host:
        raise ValueError("a zone means nothing on another host")


class Endpoint(Message, frozen=True):
    """An IP literal and a port."""

    host: Annotated[str, Meta(min_length=2, max_length=45)]
    port: Port

    def __post_init__(self) -> None:
        _check_host(self.host)

    @property
    def address(self) -> Address:
        """The pair that the socket module takes."""
        return self.host, self.port

    @classmethod
    def of(cls, address: tuple[str, int]) -> Endpoint:
        """Make an endpoint of a socket module's address."""
        return cls(address[0], address[1])


Endpoints = Annotated[list[Endpoint], Meta(max_length=8)]


class Path(Message, frozen=True):
    """One way to join the two sides; ``addresses`` are where its dialler dials."""

    kind: PathKind
    addresses: Endpoints


Paths = Annotated[list[Path], Meta(max_length=8)]


class Nothing(Message, frozen=True):
    """The body of a request or reply that says nothing beyond its header."""
