"""The hosts of a broker's proxy addresses: one by IPv4, one by IPv6, or both.

Pure. It must never say that a listener has a proxy address of a family that its program
cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass

from gcbpatch.addresses import family_of


@dataclass(frozen=True)
class Hosts:
    """``all`` are IP literals, at most one of each family; the first is for who takes either."""

    all: tuple[str, ...]

    @property
    def first(self) -> str:
        """The host by which the broker is called."""
        return self.all[0]

    def of(self, family: int) -> str | None:
        """Return the host of a family (4 or 6), the first for 0; None if there is none."""
        return next((host for host in self.all if family in (0, family_of(host))), None)

    def like(self, host: str) -> str:
        """Return ours of the family of ``host``; the first if there is none."""
        return self.of(family_of(host)) or self.first

    def other(self, host: str) -> str:
        """Return the one that like() does not; empty if there is none."""
        return next((one for one in self.all if one != self.like(host)), "")

    def shown(self, peer: tuple[str, int], family: int) -> tuple[str, int]:
        """Return a peer's address as a listener that shows addresses of ``family`` is told it.

        A peer of the other family has none there: as behind a NAT64 (RFC 6146) it has ours,
        and its own port.
        """
        if family in (0, family_of(peer[0])):
            return peer
        return self.of(family) or self.first, peer[1]
