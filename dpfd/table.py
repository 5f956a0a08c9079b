"""The mapping table: what dpfd promised to whom, and until when. Pure.

It must never decide who may have what (policy does) nor touch mirror or kernel (dispatch
does, in this order). ``now`` is any clock that does not go back, in seconds.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from gcbpatch.addresses import Address, format_address

Key = TypeVar("Key")
Owner = tuple[bytes, bytes]
"""Whose a mapping is: the client's id and the listener's."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """[A:B > X:Y] and what keeps it alive (PCP's mapping, RFC 6887).

    ``public`` is A:B, ``inside`` X:Y. ``management`` is where the client's management socket
    listens, ``nonce`` what it proves to know. ``lifetime`` in seconds.
    """

    client: bytes
    listener: bytes
    protocol: int
    public: Address
    inside: Address
    management: Address
    nonce: bytes = field(repr=False)
    lifetime: int

    def __str__(self) -> str:
        return f"[{format_address(self.public)} > {format_address(self.inside)}]"

    @property
    def owner(self) -> Owner:
        """The key of this mapping: a listener has one at most."""
        return self.client, self.listener


class Table:
    """Mappings by owner, by public address and by inside address; and their leases."""

    def __init__(self) -> None:
        self._by_owner: dict[Owner, Mapping] = {}
        self._by_public: dict[tuple[int, Address], Mapping] = {}
        self._by_inside: dict[tuple[int, Address], list[Owner]] = {}
        self._per_client: Counter[bytes] = Counter()
        self._per_host: Counter[str] = Counter()
        self._per_protocol: Counter[int] = Counter()
        self._deadlines: dict[Owner, float] = {}
        self._due: list[tuple[float, Owner]] = []
        self._noted: dict[Owner, float] = {}

    def __len__(self) -> int:
        return len(self._by_owner)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(list(self._by_owner.values()))

    def get(self, owner: Owner) -> Mapping | None:
        """Return a listener's mapping."""
        return self._by_owner.get(owner)

    def at_public(self, protocol: int, public: Address) -> Mapping | None:
        """Return the mapping of a public address."""
        return self._by_public.get((protocol, public))

    def at_inside(self, protocol: int, inside: Address) -> list[Mapping]:
        """Return the mappings to an inside address, the oldest first.

        There can be several: listeners that share a port by SO_REUSEPORT, or a dead one and
        its successor.
        """
        owners = self._by_inside.get((protocol, inside), [])
        return [self._by_owner[owner] for owner in owners]

    def count_of(self, client: bytes) -> int:
        """Return how many mappings a client has."""
        return self._per_client[client]

    def count_at(self, host: str) -> int:
        """Return how many mappings lead to a host inside."""
        return self._per_host[host]

    def count_in(self, protocol: int) -> int:
        """Return how many public addresses of a protocol are mapped."""
        return self._per_protocol[protocol]

    def put(self, mapping: Mapping, now: float) -> None:
        """Enter a mapping, with a whole lifetime, in the place of its owner's old one.

        Raises ValueError if its public address is another owner's.
        """
        holder = self.at_public(mapping.protocol, mapping.public)
        owner = mapping.owner  # one object, in all these tables
        if holder is not None and holder.owner != owner:
            raise ValueError(f"{mapping.public} is mapped already")
        self.remove(owner)
        self._by_owner[owner] = mapping
        self._by_public[mapping.protocol, mapping.public] = mapping
        self._by_inside.setdefault((mapping.protocol, mapping.inside), []).append(owner)
        self._per_client[mapping.client] += 1
        self._per_host[mapping.inside[0]] += 1
        self._per_protocol[mapping.protocol] += 1
        self._deadlines[owner] = now + mapping.lifetime
        self._note(owner)

    def remove(self, owner: Owner) -> Mapping | None:
        """Take a mapping out and return it; None if there is none."""
        mapping = self._by_owner.pop(owner, None)
        if mapping is None:
            return None
        del self._by_public[mapping.protocol, mapping.public]
        del self._deadlines[owner]
        self._remove_inside(mapping)
        self._per_protocol[mapping.protocol] -= 1
        _count_down(self._per_client, mapping.client)
        _count_down(self._per_host, mapping.inside[0])
        return mapping

    def _remove_inside(self, mapping: Mapping) -> None:
        where = mapping.protocol, mapping.inside
        self._by_inside[where].remove(mapping.owner)
        if not self._by_inside[where]:
            del self._by_inside[where]

    def renew(self, owner: Owner, now: float) -> bool:
        """Give a mapping a whole lifetime again; return False if there is none."""
        mapping = self._by_owner.get(owner)
        if mapping is None:
            return False
        self._deadlines[owner] = now + mapping.lifetime
        return True

    def expired(self, now: float) -> list[Mapping]:
        """Return the mappings whose lifetime is over; they stay until removed."""
        over = []
        for owner in self._looked_at(now):
            if self._deadlines[owner] <= now:
                over.append(self._by_owner[owner])
            self._note(owner)
        return over

    def _note(self, owner: Owner) -> None:
        """Queue an owner to be looked at when its lifetime is over.

        A renewed mapping keeps its early note and is put off when that is due, so that
        renewing costs nothing and nobody is queued twice.
        """
        deadline = self._deadlines[owner]
        if self._noted.get(owner, deadline + 1) > deadline:
            self._noted[owner] = deadline
            heapq.heappush(self._due, (deadline, owner))

    def _looked_at(self, now: float) -> list[Owner]:
        owners = []
        while self._due and self._due[0][0] <= now:
            when, owner = heapq.heappop(self._due)
            if self._noted.get(owner) != when:
                continue
            del self._noted[owner]
            if owner in self._deadlines:
                owners.append(owner)
        return owners


def _count_down(counts: Counter[Key], key: Key) -> None:
    """One less; what is zero is forgotten, since there is no end of clients."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
