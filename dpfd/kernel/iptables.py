"""The iptables back end: python-iptables, legacy tables, a tree of chains.

Model. In the nat table PREROUTING and OUTPUT jump to DPFD, which jumps to one chain for each
block of 256 public ports in use; a chain has at most 256 rules, so a packet passes few however
many mappings there are. POSTROUTING jumps to DPFD-AFTER, and that to a chain for each public host
of each dpfd: there a connection from inside to a neighbour's public address gets that address as
its source (RFC 5382, REQ-8), so that answers come back through the gateway, and what a UDP
listener sends to the world leaves from its public port, by DPFD-SOURCES.

Guarantees. A call to apply() is one commit of the nat table: all or nothing. The xtables lock is
held from reading to writing. Every chain begins with DPFD, and no rule outside of these chains is
touched but the three jumps to them. python-iptables is imported with the first object, since its
import runs modprobe. A commit takes the kernel as long as the table is large; all that is done
here besides does not grow with the number of mappings, but for the first time after read().
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from gcbpatch.errors import ConfigError
from gcbpatch.wire.messages import UDP

from .. import faults
from ..reconcile import Rule
from . import blocks, legacy
from .after import AfterRouting
from .blocks import AFTER, BLOCK_NAME, ROOT, SOURCE_NAME, SOURCES
from .entries import parse_entry
from .lock import xtables_lock
from .port import KernelError, Layout, Reading
from .xtables import append, bytes_of, chain_names, delete, insert, raws, targets

_JUMPS = {"PREROUTING": ROOT, "OUTPUT": ROOT, "POSTROUTING": AFTER}


class Iptables:
    """Legacy iptables by python-iptables."""

    def __init__(self, layout: Layout) -> None:
        """Raises ConfigError if python-iptables is not installed."""
        self._layout = layout
        self._iptc = _import_iptc()
        self._after = AfterRouting(self._iptc, layout)
        self._unchecked = True
        self._proved: set[int] = set()
        self._seen: bytes | None = None
        self._damaged = False

    def close(self) -> None:
        """Nothing is held."""

    def read(self) -> Reading:
        """Return dpfd's rules. Raises KernelError."""
        self._unchecked = True
        self._proved.clear()
        self._seen, self._damaged = None, False
        if not legacy.table_exists("nat"):
            return Reading((), ())
        found = [
            entry.rule() for chain, entry in legacy.entries("nat") if BLOCK_NAME.fullmatch(chain)
        ]
        rules = tuple(rule for rule in found if rule and rule.public in self._layout)
        return Reading(rules, ())

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules in one commit. Raises KernelError."""
        with self._open() as nat:
            self._damaged = self.disturbed()
            self._prepare(nat)
            for rule in removes:
                _remove(nat, rule)
            for rule in adds:
                _add(nat, rule)
            faults.point("kernel: prepared")
            nat.commit()
            faults.point("kernel: committed")
            self._seen = legacy.signature("nat")
        self._read_back(adds)

    def hold(self, rules: Collection[Rule]) -> None:
        """Rules of iptables have no end of their own."""

    def disturbed(self) -> bool:
        """Return whether others have changed the table since read(): its size, its hooks."""
        changed = self._seen is not None and self._seen != legacy.signature("nat")
        return self._damaged or changed

    def flush(self) -> None:
        """Remove everything of dpfd's. Raises KernelError."""
        if legacy.table_exists("nat"):
            with self._open() as nat:
                for builtin, name in _JUMPS.items():
                    while name in targets(nat, builtin):
                        delete(nat, builtin, blocks.plain_jump(name))
                _remove_chains(nat)
                nat.commit()
        self._seen = None

    def relocate(self, layout: Layout) -> None:
        """Take over changed settings; the chains follow with the next apply()."""
        former = self._layout.hosts
        self._layout = layout
        self._after = AfterRouting(self._iptc, layout, former)
        self._unchecked = True

    def plan(self, adds: Collection[Rule], removes: Collection[Rule]) -> Iterator[str]:
        """Yield what apply() would do to others' chains, and which mappings it would change."""
        tool = "iptables-legacy -w -t nat"
        for builtin, name in _JUMPS.items():
            yield f"{tool} -I {builtin} -j {name}"
        for verb, rules in (("-D", removes), ("-A", adds)):
            for rule in rules:
                kind, (host, port) = ("udp" if rule.protocol == UDP else "tcp"), rule.public
                to = f"{rule.inside[0]}:{rule.inside[1]}"
                where = f"{blocks.block(rule)} -d {host} -p {kind} --dport {port}"
                yield f"{tool} {verb} {where} -j DNAT --to-destination {to}"

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Lock, and give the table as the kernel has it now; nothing is kept unless committed."""
        with xtables_lock():
            try:
                table = self._iptc.Table("nat", autocommit=False)
                self._iptc.Table.existing_table_names["nat"] = True
                table.refresh()
                yield table
            except (self._iptc.IPTCError, self._iptc.xtables.XTablesError, ValueError) as error:
                self._unchecked = True
                raise KernelError(f"iptables, table nat: {error}") from error

    def _prepare(self, nat: Any) -> None:
        """Put dpfd's chains where they belong; each of them is looked at after read() only."""
        for name in (ROOT, AFTER, SOURCES):
            if not nat.is_chain(name):
                nat.create_chain(name)
                self._unchecked = True
        for builtin, name in _JUMPS.items():
            if name not in targets(nat, builtin):
                insert(nat, builtin, blocks.plain_jump(name))
        if self._unchecked:
            self._check_jumps(nat)
            self._after.prepare(nat)
            self._unchecked = False

    def _check_jumps(self, nat: Any) -> None:
        """Somebody may have emptied our chains, and left the blocks as they were."""
        for root, pattern, jump in (
            (ROOT, BLOCK_NAME, blocks.block_jump),
            (SOURCES, SOURCE_NAME, blocks.source_jump),
        ):
            there = set(targets(nat, root))
            for name in filter(pattern.fullmatch, chain_names(nat)):
                if name not in there:
                    append(nat, root, jump(name))

    def _read_back(self, adds: Collection[Rule]) -> None:
        """Raise KernelError unless the kernel has understood what was set.

        A commit is whole or an error, and to read a table takes as long as it is large. What
        could go wrong is a layout, so the first rule of each protocol is looked at.
        """
        unproved = [rule for rule in adds if rule.protocol not in self._proved]
        if not unproved:
            return
        found = {entry.rule() for chain, entry in legacy.entries("nat") if chain}
        if missing := set(unproved).difference(found):
            raise KernelError(f"iptables, table nat: {min(missing)} was set, and is not there")
        self._proved.update(rule.protocol for rule in unproved)


def _add(nat: Any, rule: Rule) -> None:
    name = blocks.block(rule)
    _append_in_branch(nat, ROOT, name, blocks.block_jump, blocks.forward(rule))
    if rule.protocol == UDP:
        name = blocks.source(rule.inside)
        _append_in_branch(nat, SOURCES, name, blocks.source_jump, blocks.leaving(rule))


def _append_in_branch(nat: Any, root: str, name: str, jump: Any, entry: bytes) -> None:
    if not nat.is_chain(name):
        nat.create_chain(name)
        append(nat, root, jump(name))
    append(nat, name, entry)


def _remove(nat: Any, rule: Rule) -> None:
    name = blocks.block(rule)
    _delete_in_branch(nat, ROOT, name, blocks.block_jump(name), blocks.forward(rule))
    if rule.protocol == UDP:
        name = blocks.source(rule.inside)
        _delete_in_branch(nat, SOURCES, name, blocks.source_jump(name), blocks.leaving(rule))


def _delete_in_branch(nat: Any, root: str, name: str, jump: bytes, entry: bytes) -> None:
    if not nat.is_chain(name):
        return
    if not delete(nat, name, entry):
        _delete_alike(nat, name, entry)
    if not nat.first_rule(name):
        delete(nat, root, jump)
        nat.delete_chain(name)


def _delete_alike(nat: Any, chain: str, entry: bytes) -> None:
    """A rule that somebody else has put in may say the same in other bytes."""
    wanted = parse_entry(entry).rule()
    for raw in raws(nat, chain):
        found = bytes_of(raw)
        if wanted is not None and parse_entry(found).rule() == wanted:
            delete(nat, chain, found)
            return


def _import_iptc() -> Any:
    try:
        import iptc
    except ImportError as error:
        raise ConfigError(
            "backend iptables: python-iptables is not installed; pip install 'gcbpatch[gateway]' "
            f"would be right ({error})"
        ) from error
    # Looking for a jump's target, python-iptables opens every table that it thinks exists,
    # and opening a legacy table is what brings it into being.
    iptc.Table.existing_table_names.update(dict.fromkeys(iptc.Table.ALL, False))
    return iptc


def _remove_chains(table: Any) -> None:
    names = [n for n in chain_names(table) if n == ROOT or n.startswith(f"{ROOT}-")]
    for name in names:
        table.flush_entries(name)
    for name in names:
        table.delete_chain(name)
