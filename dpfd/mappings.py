"""The three representations, changed together: table, mirror and kernel.

A mapping is set in the order table, mirror, kernel and acknowledged after that; it is removed
in the order kernel, mirror, table. Whatever fails on the way is undone, and whatever a killed
process leaves half done the next reconcile settles in the mirror's favour. It must never touch
a rule of somebody else's, nor decide who may have what: dispatch does.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import gevent
from gevent.lock import RLock

from gcbpatch.addresses import Address

from . import faults
from .kernel.port import Claim, KernelError, KernelPort
from .mirror import Mirror, MirrorError
from .policy import Policy
from .pool import Pool
from .reconcile import Rule, diff
from .table import Mapping, Table

log = logging.getLogger("dpfd")

HELD_AT_A_TIME = 500
"""Leases that are begun anew before others have a turn."""


def rule_of(mapping: Mapping) -> Rule:
    """Return what a mapping is in the kernel."""
    return Rule(mapping.protocol, mapping.public, mapping.inside)


class Mappings:
    """The three representations, changed together, one change at a time."""

    def __init__(self, table: Table, mirror: Mirror, kernel: KernelPort, pool: Pool) -> None:
        self.table = table
        self.pool = pool
        self._mirror = mirror
        self._kernel = kernel
        self._claims: tuple[Claim, ...] = ()
        self._lock = RLock()
        self._doubtful = False

    @property
    def epoch(self) -> bytes:
        """What clients are told, to notice that state was lost."""
        return self._mirror.epoch

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold what must not change between a decision and what follows from it."""
        with self._lock:
            yield

    def load(self, now: float, policy: Policy) -> None:
        """Take the mirror's mappings in, each with a whole lifetime.

        Those that this dpfd's hosts, ports and policy no longer allow are given up. Raises
        KernelError and MirrorError.
        """
        known = self._mirror.mappings()
        strays = [mapping for mapping in known if not self._may_stay(mapping, policy)]
        for mapping in set(known) - set(strays):
            self.table.put(mapping, now)
        if strays:
            self._kernel.apply([], [rule_of(mapping) for mapping in strays])
            faults.point("load: strays")
            self._mirror.remove([mapping.owner for mapping in strays])
        for mapping in strays:
            log.warning("%s is outside of what is configured, and given up", mapping)

    def give_up(self, policy: Policy) -> None:
        """Remove what the policy allows no more. Raises KernelError and MirrorError."""
        with self._lock:
            strays = [one for one in self.table if not self._may_stay(one, policy)]
            if strays:
                self.remove(strays)

    def _may_stay(self, mapping: Mapping, policy: Policy) -> bool:
        asker = mapping.management[0]
        return mapping.public in self.pool and policy.tolerates(
            asker, mapping.inside, mapping.public
        )

    def reconcile(self) -> None:
        """Make kernel and mirror hold what the table says. Raises KernelError, MirrorError.

        Rules for public addresses of another dpfd on this gateway are that one's to look after.
        """
        with self._lock:
            if self._doubtful:
                self._settle_mirror()
            reading = self._kernel.read()
            faults.point("reconcile: read")
            self._claims = reading.claims
            ours = (rule for rule in reading.rules if rule.public in self.pool)
            changes = diff(map(rule_of, self.table), ours)
            self._kernel.apply(changes.adds, changes.removes)
            faults.point("reconcile: applied")
            if changes:
                count = len(changes.adds), len(changes.removes)
                text = "the kernel lacked %d rules and had %d too many, which is put right"
                log.info(text, *count)

    def _settle_mirror(self) -> None:
        """An undoing failed: what the mirror has and the table has not goes now."""
        known = self._mirror.mappings()
        for mapping in known:
            if self.table.get(mapping.owner) != mapping:
                self._mirror.remove([mapping.owner])
        for mapping in set(self.table) - set(known):
            self._mirror.put(mapping)
        self._doubtful = False

    def hold(self) -> None:
        """Begin the leases of all rules in the kernel anew, a few at a time.

        Raises KernelError if one of them is not there.
        """
        known = list(self.table)
        for start in range(0, len(known), HELD_AT_A_TIME):
            some = known[start : start + HELD_AT_A_TIME]
            with self._lock:
                there = [m for m in some if self.table.get(m.owner) == m]
                self._kernel.hold([rule_of(mapping) for mapping in there])
            gevent.sleep(0)

    def relocate(self, pool: Pool) -> None:
        """Give other public addresses away from now on; what is mapped elsewhere is removed.

        Its clients learn so when they renew. Raises KernelError and MirrorError.
        """
        with self._lock:
            self.pool = pool
            strays = [mapping for mapping in self.table if mapping.public not in pool]
            self.remove(strays)
        self.reconcile()

    def respect(self, claims: tuple[Claim, ...]) -> None:
        """Give no public address away that others' rules forward."""
        new = set(claims) - set(self._claims)
        if new:
            ports = ", ".join(sorted({f"{one.low}-{one.high}" for one in new}))
            log.debug("others forward ports %s now, too", ports)
        self._claims = claims

    def claimed(self, protocol: int, public: Address) -> bool:
        """Return whether somebody else's rule forwards this public address."""
        host = int.from_bytes(socket.inet_aton(public[0]), "big")
        return any(claim.covers(protocol, host, public[1]) for claim in self._claims)

    def put(self, mapping: Mapping, old: Mapping | None, now: float) -> None:
        """Set a mapping, in the place of ``old`` if there is one.

        Raises MirrorError or KernelError; everything is as before then.
        """
        with self._lock:
            faults.point("set: asked")
            self._table_put(mapping, old, now)
            faults.point("set: table")
            try:
                self._mirror.put(mapping, instead=old.owner if old else None)
                faults.point("set: mirror")
                self._kernel_put(mapping, old)
                faults.point("set: kernel")
            except KernelError:
                self._undo(mapping, old, now)
                self._mirror_undo(mapping, old)
                raise
            except MirrorError:
                self._undo(mapping, old, now)
                raise

    def remove(self, mappings: list[Mapping]) -> None:
        """Remove mappings. Raises KernelError or MirrorError; they stay in the table then."""
        with self._lock:
            there = [m for m in mappings if self.table.get(m.owner) == m]
            faults.point("remove: asked")
            self._kernel.apply([], [rule_of(mapping) for mapping in there])
            faults.point("remove: kernel")
            self._mirror.remove([mapping.owner for mapping in there])
            faults.point("remove: mirror")
            for mapping in there:
                self.table.remove(mapping.owner)
                log.info("%s removed", mapping)
            faults.point("remove: table")

    def remove_expired(self, now: float) -> None:
        """Remove the mappings whose lease is over. Raises as remove() does."""
        with self._lock:
            expired = self.table.expired(now)
            if expired:
                self.remove(expired)

    def _table_put(self, mapping: Mapping, old: Mapping | None, now: float) -> None:
        if old is not None:
            self.table.remove(old.owner)
        self.table.put(mapping, now)

    def _kernel_put(self, mapping: Mapping, old: Mapping | None) -> None:
        changes = diff([rule_of(mapping)], [rule_of(old)] if old else [])
        if changes:
            self._kernel.apply(changes.adds, changes.removes)

    def _undo(self, mapping: Mapping, old: Mapping | None, now: float) -> None:
        self.table.remove(mapping.owner)
        if old is not None:
            self.table.put(old, now)

    def _mirror_undo(self, mapping: Mapping, old: Mapping | None) -> None:
        try:
            if old is None:
                self._mirror.remove([mapping.owner])
            else:
                self._mirror.put(old, instead=mapping.owner)
        except MirrorError as error:
            self._doubtful = True
            log.error("%s stays in the mirror until the next reconcile: %s", mapping, error)
