"""The nftables back end: one map, by netlink.

Model. A mapping is one element of a map that a single rule looks into: setting, removing and
forwarding cost the same however many there are. Elements carry a timeout, so that the kernel
ends the mappings of a dpfd that does not come back; hold() begins it anew.

Guarantees. A call to apply() is one transaction, done only if the firewall is of the very
generation at which dpfd's own chains were last seen whole; if anybody has changed anything
since, they are looked at again first and made anew if they are damaged. What was written is
read back. Everything is in the table ``ip dpfd``; no other is ever touched.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from gcbpatch.wire.messages import UDP

from .. import faults
from ..reconcile import Rule
from . import elements, ruleset, tools
from .elements import Element
from .fixed import FixedPart
from .netlink import GenerationPassedError, Netlink, NetlinkError, Request
from .port import KernelError, Layout, Reading
from .sources import Entry, SourceChanges, Sources

_T = TypeVar("_T")
_TRIES = 10
_READ_BACK = 128
"""More changes than these are read back with the whole map, which is then cheaper."""
_PORTS = elements.where(ruleset.TABLE, ruleset.PORTS)
_SOURCES = elements.where(ruleset.TABLE, ruleset.SOURCES)


class Nftables:
    """One map in the kernel."""

    def __init__(self, layout: Layout) -> None:
        """Raises KernelError if there is no netlink to the firewall."""
        self._layout = layout
        self._netlink = Netlink()
        self._fixed = FixedPart(self._netlink, layout)
        self._generation: int | None = None
        self._sources = Sources()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def read(self) -> Reading:
        """Return dpfd's rules. Raises KernelError."""
        self._fixed.was_remade = False
        rules = [Rule(*one) for one in self._dump(ruleset.PORTS) if one.place in self._layout]
        entries = [(one.place, one.to) for one in self._dump(ruleset.SOURCES)]
        self._sources = Sources(rules, [entry for entry in entries if entry[1] in self._layout])
        return Reading(tuple(rules), ())

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules in one transaction. Raises KernelError."""
        left = list(removes)
        for _ in range(_TRIES):
            try:
                self._commit(adds, left)
            except GenerationPassedError:
                self._generation = None
            except NetlinkError as error:
                left = self._without_missing(error, left)
            else:
                self._read_back(adds)
                return
        raise KernelError(f"nftables: other programs came in between {_TRIES} times in a row")

    def hold(self, rules: Collection[Rule]) -> None:
        """Begin the timeouts of these rules anew. Raises KernelError if one is missing.

        They are removed and set again in one transaction, which no packet sees: kernels before
        6.12 do not change the timeout of an element that is there.
        """
        for some in _pieces(list(rules), elements.PER_MESSAGE):
            self._hold(some)

    def disturbed(self) -> bool:
        """Return whether others damaged the chains; if nothing has changed nothing is looked at."""
        if self._generation is None or self._fixed.was_remade:
            return self._fixed.was_remade
        return self._generation != self._fixed.generation() and self._fixed.damaged()

    def flush(self) -> None:
        """Remove the table. Raises KernelError."""
        if self._fixed.is_there():
            tools.run(["nft", "delete", "table", "ip", ruleset.TABLE])
        self._generation, self._sources = None, Sources()

    def relocate(self, layout: Layout) -> None:
        """Take over changed settings; the fixed part follows with the next apply()."""
        self._layout = self._fixed.layout = layout
        self._fixed.forget()
        self._generation = None

    def plan(self, adds: Collection[Rule], removes: Collection[Rule]) -> Iterator[str]:
        """Yield what apply() would do, as commands for a shell."""
        for line in self._planned(adds, removes):
            yield f"nft {shlex.quote(line)}"

    def _planned(self, adds: Collection[Rule], removes: Collection[Rule]) -> Iterator[str]:
        changes, lease = self._sources.changes(adds, removes), self._layout.lease
        yield from self._fixed.script().splitlines()
        yield from _written("delete", ruleset.SOURCES, map(_source, changes.removes), 0)
        yield from _written("delete", ruleset.PORTS, map(_element, removes), 0)
        yield from _written("add", ruleset.SOURCES, map(_source, changes.adds), lease)
        yield from _written("add", ruleset.PORTS, map(_element, adds), lease)

    def _commit(self, adds: Collection[Rule], removes: list[Rule]) -> None:
        changes = self._sources.changes(adds, removes)
        faults.point("kernel: prepared")
        self._batch(self._requests(adds, removes, changes))
        faults.point("kernel: committed")
        self._sources.done(adds, removes, changes)

    def _batch(self, requests: list[Request]) -> None:
        """One transaction, of the generation at which the fixed part is known to be whole."""
        if self._generation is None or not requests:
            self._generation = self._fixed.settle()
        if requests:
            self._netlink.batch(requests, self._generation)
            self._generation = _next(self._generation)

    def _hold(self, rules: list[Rule]) -> None:
        entries = tuple(self._sources.of(rules))
        requests = self._requests(rules, rules, SourceChanges(entries, entries))
        for _ in range(_TRIES):
            try:
                return self._batch(requests)
            except GenerationPassedError:
                self._generation = None
        raise KernelError(f"nftables: other programs came in between {_TRIES} times in a row")

    def _requests(
        self, adds: Iterable[Rule], removes: Iterable[Rule], changes: SourceChanges
    ) -> list[Request]:
        """A message for each removal, so that the kernel says which of them was not there."""
        requests = [_removal(_PORTS, _element(rule)) for rule in removes]
        requests += [_removal(_SOURCES, _source(entry)) for entry in changes.removes]
        requests += self._additions(_PORTS, [_element(rule) for rule in adds])
        requests += self._additions(_SOURCES, [_source(entry) for entry in changes.adds])
        return requests

    def _additions(self, place: bytes, wanted: list[Element]) -> Iterator[Request]:
        lease = self._layout.lease * 1000
        for some in _pieces(wanted, elements.PER_MESSAGE):
            parts = [element.whole(lease) for element in some]
            yield elements.message(elements.SET, place, parts, f"setting {some[0]}")

    def _without_missing(self, error: NetlinkError, removes: list[Rule]) -> list[Rule]:
        """Leave out removals of what is not there; raise what has another reason."""
        if not error.is_only(errno.ENOENT):
            raise error
        if max(error.refusals) >= len(removes):
            self.read()  # an entry of the sources has timed out
        return [rule for index, rule in enumerate(removes) if index not in error.refusals]

    def _read_back(self, adds: Collection[Rule]) -> None:
        """Raise KernelError unless the kernel shows what was set."""
        wanted = [_element(rule) for rule in adds]
        if not wanted:
            return
        missing = set(wanted)
        if len(missing) > _READ_BACK:
            missing.difference_update(self._dump(ruleset.PORTS))
        # A dump passes over some of them while the kernel makes the map's table larger.
        for some in _pieces(sorted(missing), _READ_BACK):
            missing.difference_update(self._found(some))
        if missing:
            raise KernelError(f"nftables: {min(missing)} was set, and is not there")

    def _found(self, wanted: list[Element]) -> list[Element]:
        parts = [element.bare() for element in wanted]
        words = f"reading back {wanted[0]}"
        asked = elements.message(elements.GET, _PORTS, parts, words)
        return elements.parse(self._netlink.ask(asked))

    def _dump(self, name: str) -> list[Element]:
        try:
            return elements.parse(self._fixed.elements_of(name))
        except ValueError as error:
            raise KernelError(f"nftables: table {ruleset.TABLE}, map {name}: {error}") from error


def _element(rule: Rule) -> Element:
    return Element(*rule)


def _source(entry: Entry) -> Element:
    return Element(UDP, *entry)


def _removal(place: bytes, element: Element) -> Request:
    return elements.message(elements.DELETE, place, [element.bare()], f"removing {element}")


def _pieces(whole: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _written(verb: str, name: str, listed: Iterable[Element], lease: int) -> Iterator[str]:
    for one in listed:
        yield f"{verb} element ip {ruleset.TABLE} {name} {{ {one.shown(lease)} }}"


def _next(generation: int) -> int:
    """Count on as the kernel does, which leaves out 0."""
    return (generation + 1) % (1 << 32) or 1
