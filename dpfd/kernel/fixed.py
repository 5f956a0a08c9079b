"""Keeps the fixed part of dpfd's nftables table whole: chains, rules, sets of settings.

nft makes it; netlink looks at it, which costs some 100 µs however many mappings there are, and is
only done when the kernel's generation says that anybody changed anything. It must never touch
another table, nor the maps.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from typing import Any

from . import elements, ruleset, tools
from .elements import IPV4
from .netlink import Netlink, NetlinkError, Request, attributes, text
from .port import KernelError, Layout

log = logging.getLogger("dpfd.nftables")

_GET_CHAIN, _GET_RULE, _GET_GENERATION = 0x0A04, 0x0A07, 0x0A10
_TABLE, _CHAIN, _GENERATION = 1, 3, 1
_SHOWN_OF_RULE = (2, 4, 7)
"""Chain, expressions, comment; not the handle, which is new each time."""
_SHOWN_OF_CHAIN = (4, 5)
"""Hook and policy."""
_TRIES = 10


class FixedPart:
    """The fixed part, as the kernel has it."""

    def __init__(self, netlink: Netlink, layout: Layout) -> None:
        self._netlink = netlink
        self.layout = layout
        self._whole: list[bytes] | None = None
        self.was_remade = False
        """Whether it had been damaged, so that mappings may be missing as well."""

    def settle(self) -> int:
        """Make whole what is not; return the generation at which it is. Raises KernelError."""
        for _ in range(_TRIES):
            generation = self.generation()
            if self._whole is not None and self._look() == self._whole:
                return generation
            self._make()
        raise KernelError(f"nftables: table {ruleset.TABLE} does not stay as it is made")

    def damaged(self) -> bool:
        """Return whether it is not as it was made."""
        return self._look() != self._whole

    def forget(self) -> None:
        """Make it anew the next time, whatever is there."""
        self._whole = None

    def is_there(self) -> bool:
        """Return whether there is anything."""
        return bool(self._look())

    def script(self) -> str:
        """Return what makes it, as text for nft."""
        return ruleset.script(self.layout, self._sharing())

    def generation(self) -> int:
        """Return the generation of the whole firewall; each transaction begins a new one."""
        asked = Request(_GET_GENERATION, 0, 0, b"", "asking for the generation")
        (body,) = self._netlink.ask(asked)
        return int.from_bytes(dict(attributes(body))[_GENERATION], "big")

    def elements_of(self, name: str) -> list[bytes]:
        """Return what a set or a map holds, as answers of netlink; nothing if there is none."""
        where = elements.where(ruleset.TABLE, name)
        try:
            return self._netlink.dump(Request(elements.GET, 0, IPV4, where, f"reading {name}"))
        except NetlinkError as error:
            if error.is_only(errno.ENOENT):
                return []
            raise

    def _make(self) -> None:
        """What the kernel shows of it now is what it must go on showing."""
        again = self._whole is not None
        tools.run(["nft", "-f", "-"], self.script())
        self._whole = self._look()
        if not self._whole:
            raise KernelError(f"nftables: table {ruleset.TABLE} is not there after it was made")
        if again:
            self.was_remade = True
            log.warning("others had changed table ip %s; it is whole again", ruleset.TABLE)

    def _look(self) -> list[bytes]:
        """Return it as the kernel shows it; an empty list if there is nothing."""
        found = list(self._rules())
        if found:
            found += map(self._chain, ruleset.CHAINS)
            for name in ruleset.FIXED_SETS:
                found += sorted(elements.raw(self.elements_of(name)))
        return found

    def _rules(self) -> Iterator[bytes]:
        """Dumping rules of a table that is not there gives none."""
        asked = Request(_GET_RULE, 0, IPV4, text(_TABLE, ruleset.TABLE), "reading rules")
        for body in self._netlink.dump(asked):
            yield _picked(body, _SHOWN_OF_RULE)

    def _chain(self, name: str) -> bytes:
        names = text(_TABLE, ruleset.TABLE) + text(_CHAIN, name)
        try:
            (body,) = self._netlink.ask(Request(_GET_CHAIN, 0, IPV4, names, f"chain {name}"))
        except NetlinkError as error:
            if error.is_only(errno.ENOENT):
                return b""
            raise
        return _picked(body, _SHOWN_OF_CHAIN)

    def _sharing(self) -> ruleset.Sharing:
        """What other dpfds have in the sets; it is theirs if they have a range of their own."""
        if not self.elements_of("ranges"):
            return ruleset.Sharing()
        ranges = [tuple(one["range"]) for one in _listed("set", "ranges") if "range" in one]
        if all(self.layout.overlaps(low, high) for low, high in ranges):
            return ruleset.Sharing()
        names, networks = _listed("set", "inner"), map(_network, _listed("set", "networks"))
        inside = [(name, network) for network in networks for name in names]
        hosts = [host for host, _ in _listed("map", "hosts")]
        return ruleset.Sharing(tuple(hosts), tuple(inside), tuple(ranges))


def _picked(body: bytes, kinds: tuple[int, ...]) -> bytes:
    return b"".join(value for kind, value in attributes(body) if kind in kinds)


def _listed(kind: str, name: str) -> list[Any]:
    """Return the elements of a set of settings as nft writes them."""
    found = json.loads(tools.run(["nft", "-j", "list", kind, "ip", ruleset.TABLE, name]))
    return [one for item in found["nftables"] for one in item.get(kind, {}).get("elem", [])]


def _network(shown: Any) -> str:
    if isinstance(shown, dict):
        return f"{shown['prefix']['addr']}/{shown['prefix']['len']}"
    return str(shown)
