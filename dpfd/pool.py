"""Public addresses to give away: the wished-for one first, else any. Pure.

It must never say that an address is free: who asks tries the candidates one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gcbpatch.addresses import Address, is_wildcard


@dataclass(frozen=True, slots=True)
class Pool:
    """Public hosts and the range of ports, both ends included, that this dpfd gives away."""

    hosts: tuple[str, ...]
    low: int
    high: int

    @property
    def size(self) -> int:
        """How many addresses there are."""
        return len(self.hosts) * self._ports

    @property
    def _ports(self) -> int:
        return self.high - self.low + 1

    def __contains__(self, address: Address) -> bool:
        return address[0] in self.hosts and self.low <= address[1] <= self.high

    def candidates(self, wishes: Sequence[Address], start: int) -> Iterator[Address]:
        """Yield every address of the pool once, those that fit a wish before all others.

        A wish may leave the host (wildcard) or the port (0) open; one with a host that is not
        of the pool is taken for its port. ``start`` is a random number of any size: where in
        the pool to begin, since a port that can be guessed helps an attacker (RFC 6056).
        """
        fitting = [address for wish in wishes for address in self._fitting(wish)]
        first = list(dict.fromkeys(address for address in fitting if address in self))
        yield from first
        for address in self._all(start):
            if address not in first:
                yield address

    def _fitting(self, wish: Address) -> list[Address]:
        host, port = wish
        if not port:
            return []
        hosts = [] if is_wildcard(host) else [host]
        return [(h, port) for h in dict.fromkeys((*hosts, *self.hosts))]

    def _all(self, start: int) -> Iterator[Address]:
        """Yield all addresses in steps that ``start`` gives as well.

        One after the other would take the longer the more neighbours are taken: whoever begins
        among them passes all of them.
        """
        step = self._step(start // self.size)
        for number in range(self.size):
            host, port = divmod((start + number * step) % self.size, self._ports)
            yield self.hosts[host], self.low + port

    def _step(self, number: int) -> int:
        """Return a step that passes every address once, since it has no divisor with them."""
        step = 1 + number % self.size
        while math.gcd(step, self.size) != 1:
            step += 1
        return step
