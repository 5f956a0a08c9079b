"""What a broker or gateway has to know of a socket that it registers, stream or datagram.

It must never say how connections or datagrams come to the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..addresses import Address


class Registrant(Protocol):
    """One socket of a program; ``proxy`` and what follows is what came of its registration."""

    listener: bytes
    protocol: int
    family: int
    bound: Address
    wished: int
    nonce: bytes
    proxy: Address | None
    claim: bytes
    how: str
    error: int
    reason: str
    relay: Address | None

    @property
    def nudge_target(self) -> Address:
        """Where the socket is reached from this host."""


class Collection(Protocol):
    """Registrants by their ids."""

    def get(self, listener: bytes) -> Registrant | None:
        """Return the one of that id, if it lives."""

    def check(self) -> None:
        """End those whose sockets the kernel does not know any more."""


@dataclass(slots=True)
class Registrants:
    """Several collections as one."""

    collections: tuple[Collection, ...]

    def get(self, listener: bytes) -> Registrant | None:
        """Return the one of that id, if it lives."""
        found = (collection.get(listener) for collection in self.collections)
        return next((one for one in found if one is not None), None)

    def check(self) -> None:
        """End those whose sockets the kernel does not know any more."""
        for collection in self.collections:
            collection.check()
