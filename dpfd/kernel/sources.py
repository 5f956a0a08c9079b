"""Which public address a UDP listener's datagrams leave from. Pure: the state of one map.

A listener may be mapped more than once; the map holds one of its public addresses, the one that
it had first, as long as that is mapped. It must never know how a map is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from gcbpatch.addresses import Address
from gcbpatch.wire.messages import UDP

from ..reconcile import Rule

Entry = tuple[Address, Address]
"""Inside and public address."""


class SourceChanges(NamedTuple):
    """Entries to set and entries to remove before."""

    adds: tuple[Entry, ...]
    removes: tuple[Entry, ...]


class Sources:
    """What the kernel's map holds, beside the mappings that it should follow."""

    def __init__(self, rules: Iterable[Rule] = (), entries: Iterable[Entry] = ()) -> None:
        self._entries = dict(entries)
        self._publics: dict[Address, set[Address]] = {}
        self._wrong = set(self._entries)
        self._note(rules, ())
        self._wrong = {inside for inside in self._wrong | set(self._publics) if self._off(inside)}

    def changes(self, adds: Collection[Rule], removes: Collection[Rule]) -> SourceChanges:
        """Return what follows from changed rules, and what was wrong anyway."""
        touched = {rule.inside for rule in (*adds, *removes) if rule.protocol == UDP} | self._wrong
        new: list[Entry] = []
        gone: list[Entry] = []
        for inside in sorted(touched):
            have, want = self._entries.get(inside), self._wanted(inside, adds, removes)
            if have != want:
                gone += [(inside, have)] if have else []
                new += [(inside, want)] if want else []
        return SourceChanges(tuple(new), tuple(gone))

    def done(
        self, adds: Collection[Rule], removes: Collection[Rule], changes: SourceChanges
    ) -> None:
        """Take note that these changes were made."""
        self._note(adds, removes)
        for inside, _ in changes.removes:
            self._entries.pop(inside, None)
        self._entries.update(changes.adds)
        self._wrong.clear()

    def of(self, rules: Iterable[Rule]) -> list[Entry]:
        """Return the entries that belong to these rules."""
        insides = {rule.inside for rule in rules if rule.protocol == UDP}
        return [(inside, self._entries[inside]) for inside in insides if inside in self._entries]

    def _note(self, adds: Iterable[Rule], removes: Iterable[Rule]) -> None:
        for rule in removes:
            if rule.protocol == UDP and rule.inside in self._publics:
                self._publics[rule.inside].discard(rule.public)
                if not self._publics[rule.inside]:
                    del self._publics[rule.inside]
        for rule in adds:
            if rule.protocol == UDP:
                self._publics.setdefault(rule.inside, set()).add(rule.public)

    def _off(self, inside: Address) -> bool:
        return self._entries.get(inside) not in self._publics.get(inside, {None})

    def _wanted(
        self, inside: Address, adds: Collection[Rule], removes: Collection[Rule]
    ) -> Address | None:
        publics = set(self._publics.get(inside, ()))
        publics -= {r.public for r in removes if r.inside == inside and r.protocol == UDP}
        publics |= {r.public for r in adds if r.inside == inside and r.protocol == UDP}
        have = self._entries.get(inside)
        return have if have in publics else min(publics, default=None)
