"""Gives mappings: looks for a public address, succeeds the dead, refreshes what is there.

Whether the asker may have one is the policy's to say, before. It must never change a mapping
but by mappings, which keeps the three representations together, nor look at who asks: FORWARD
and the standard protocols come here alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from gcbpatch.addresses import Address, format_address, is_wildcard
from gcbpatch.errors import Status
from gcbpatch.wire.messages import Forward

from .liveness import Answer
from .mappings import Mappings
from .policy import Allowance, Policy, Refused
from .table import Mapping

log = logging.getLogger("dpfd")


@dataclass(frozen=True, slots=True)
class Senses:
    """What the mappings need of the world, handed in.

    ``chance`` gives random numbers; ``port_in_use`` says whether the gateway itself uses a
    public address, by protocol; ``probe`` asks a client's management socket; ``watch`` is told
    of every mapping that is new and has one.
    """

    chance: Callable[[], int]
    port_in_use: Callable[[int, Address], bool]
    probe: Callable[[Mapping], Answer]
    watch: Callable[[Mapping], None]
    clock: Callable[[], float] = time.monotonic


class Grants:
    """The giving of mappings by one policy."""

    def __init__(self, mappings: Mappings, policy: Policy, senses: Senses) -> None:
        self.mappings = mappings
        self.policy = policy
        self.senses = senses

    def grant(self, request: Forward, allowance: Allowance) -> Mapping:
        """Set a mapping, or refresh it. Raises Refused, KernelError, MirrorError.

        A dead listener that held the same inside address is succeeded: its public address goes
        to the new one unless that wishes for another. A living one keeps its mapping, and the
        new one gets a public address of its own: they share the port by SO_REUSEPORT, or the
        old one has only just been closed.
        """
        predecessor = _dead_holder(self, request)
        with self.mappings.one_at_a_time():
            mapping = _refreshed(self, request)
            mapping = mapping or _new(self, request, allowance, predecessor)
        if mapping.management[1]:
            self.senses.watch(mapping)
        return mapping


def _dead_holder(grants: Grants, request: Forward) -> Mapping | None:
    """Return another client's mapping to the same inside address, if that one is dead.

    The oldest is asked, since each costs a round trip; what a client itself has left behind,
    it removes itself.
    """
    table = grants.mappings.table
    if table.get((request.client, request.listener)) is not None:
        return None
    holders = table.at_inside(request.protocol, request.inside.address)
    others = [m for m in holders if m.client != request.client and m.management[1]]
    for mapping in others[:1]:
        if grants.senses.probe(mapping) in (Answer.REFUSED, Answer.WRONG):
            return mapping
    return None


def _refreshed(grants: Grants, request: Forward) -> Mapping | None:
    """Return the owner's mapping with what the request says anew; None if it must move."""
    mappings = grants.mappings
    old = mappings.table.get((request.client, request.listener))
    if old is None or (old.protocol, old.inside) != (request.protocol, request.inside.address):
        return None
    fresh = replace(
        old,
        management=request.management.address,
        nonce=request.nonce,
        lifetime=grants.policy.lifetime(request.lifetime),
    )
    if fresh == old:
        mappings.table.renew(old.owner, grants.senses.clock())
    else:
        mappings.put(fresh, old, grants.senses.clock())
    return fresh


def _new(
    grants: Grants, request: Forward, allowance: Allowance, predecessor: Mapping | None
) -> Mapping:
    """Set a mapping in the place of the owner's own one elsewhere, or of a dead predecessor."""
    mappings = grants.mappings
    owner = request.client, request.listener
    if predecessor is not None and mappings.table.get(predecessor.owner) != predecessor:
        predecessor = None
    old = mappings.table.get(owner) or predecessor
    if old is None:
        table = mappings.table
        counts = table.count_of(request.client), table.count_at(request.inside.host), len(table)
        grants.policy.check_room(allowance, *counts)
    mapping = Mapping(
        client=request.client,
        listener=request.listener,
        protocol=request.protocol,
        public=_public_address(grants, request, allowance, old),
        inside=request.inside.address,
        management=request.management.address,
        nonce=request.nonce,
        lifetime=grants.policy.lifetime(request.lifetime),
    )
    mappings.put(mapping, old, grants.senses.clock())
    log.info("%s set, for %d s", mapping, mapping.lifetime)
    return mapping


def _public_address(
    grants: Grants, request: Forward, allowance: Allowance, old: Mapping | None
) -> Address:
    """Choose a public address: the wish, the old one, any. Raises Refused.

    Who wishes for a port, where wishes are fulfilled or refused, gets that port or nothing.
    """
    wish = request.wished.address if request.wished else ("0.0.0.0", 0)
    strict = grants.policy.insists(wish[1])
    wishes = [wish, old.public] if old is not None else [wish]
    pool, chance = grants.mappings.pool, grants.senses.chance()
    if old is None and grants.mappings.table.count_in(request.protocol) >= pool.size:
        raise Refused(Status.NO_RESOURCES, f"all {pool.size} public addresses are mapped")
    for candidate in pool.candidates(wishes, chance):
        if strict and not _fulfils(candidate, wish):
            break
        free = allowance.gives(candidate)
        if free and _is_free(grants, request.protocol, candidate, old):
            return candidate
    if strict:
        problem = f"{format_address(wish)}, which was wished for, cannot be had"
        raise Refused(Status.CANNOT_PROVIDE_EXTERNAL, problem)
    raise Refused(Status.NO_RESOURCES, f"none of {pool.size} public addresses is free")


def _fulfils(public: Address, wish: Address) -> bool:
    return public[1] == wish[1] and (is_wildcard(wish[0]) or public[0] == wish[0])


def _is_free(grants: Grants, protocol: int, public: Address, old: Mapping | None) -> bool:
    mappings = grants.mappings
    holder = mappings.table.at_public(protocol, public)
    if holder is not None:
        return old is not None and holder.owner == old.owner
    used = mappings.claimed(protocol, public) or grants.senses.port_in_use(protocol, public)
    return not used
