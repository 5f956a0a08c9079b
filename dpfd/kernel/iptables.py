"""The iptables back end: python-iptables, legacy tables, a tree of chains.

Model. In the nat table PREROUTING and OUTPUT jump to DPFD, which jumps to one chain for each
block of 256 public ports in use; a chain has at most 256 rules, so a packet passes few however
many mappings there are. POSTROUTING jumps to DPFD-HAIRPIN, where a connection from inside to a
neighbour's public address gets that address as its source (RFC 5382, REQ-8), so that answers
come back through the gateway. Where a legacy filter table exists, FORWARD jumps to DPFD there,
which accepts what these rules forward.

Guarantees. A call to apply() is one commit of the nat table: all or nothing. The xtables lock
is held from reading to writing. Every chain begins with DPFD, and no rule outside of these
chains is touched but the four jumps to them. python-iptables is imported with the first
object, since its import runs modprobe.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcbpatch.errors import ConfigError

from .. import faults
from ..reconcile import Rule
from .entries import Entry, parse_entry
from .lock import xtables_lock
from .port import Claim, KernelError, Reading

ROOT, HAIRPIN = "DPFD", "DPFD-HAIRPIN"
BLOCK = 256
_BLOCK_NAME = re.compile(r"DPFD-([0-9A-F]{8})-([0-9A-F]{2})")
_NAMES = Path("/proc/net/ip_tables_names")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the fixed rules need to know of the gateway.

    ``inside`` are the private interfaces, each with its network as ``10.1.0.0/24``.
    """

    hosts: tuple[str, ...]
    low: int
    high: int
    inside: tuple[tuple[str, str], ...]


class Iptables:
    """Legacy iptables by python-iptables."""

    def __init__(self, layout: Layout) -> None:
        """Raises ConfigError if python-iptables is not installed."""
        self._layout = layout
        self._iptc = _import_iptc()
        self._filled: dict[tuple[str, str], int] = {}

    def read(self) -> Reading:
        """Return dpfd's rules and others' claims. Raises KernelError."""
        rules: list[Rule] = []
        claims: list[Claim] = []
        with self._open("nat") as nat:
            for chain in _chain_names(nat):
                for entry in _entries(nat, chain):
                    if _BLOCK_NAME.fullmatch(chain):
                        rules.extend(filter(None, [entry.rule()]))
                    elif not chain.startswith(ROOT):
                        claims.extend(entry.claims())
        return Reading(tuple(rules), tuple(claims))

    def apply(self, adds: Collection[Rule], removes: Collection[Rule]) -> None:
        """Set and remove rules in one commit. Raises KernelError."""
        if _exists("filter"):
            with self._open("filter") as table:
                if self._prepare(table, "FORWARD", ROOT, self._accepts):
                    table.commit()
        with self._open("nat") as nat:
            self._prepare_nat(nat)
            for rule in removes:
                self._remove(nat, rule)
            for rule in adds:
                self._add(nat, rule)
            faults.point("kernel: prepared")
            nat.commit()
            faults.point("kernel: committed")

    def flush(self) -> None:
        """Remove everything of dpfd's. Raises KernelError."""
        jumps = {"nat": ("PREROUTING", "OUTPUT", "POSTROUTING"), "filter": ("FORWARD",)}
        for name, chains in jumps.items():
            if _exists(name):
                with self._open(name) as table:
                    for chain in chains:
                        self._remove_jumps(table, chain)
                    _remove_chains(table)
                    table.commit()

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        """Lock, and give the table as the kernel has it now; nothing is kept unless committed."""
        with xtables_lock():
            try:
                table = self._iptc.Table(name, autocommit=False)
                self._iptc.Table.existing_table_names[name] = True
                table.refresh()
                yield table
            except (self._iptc.IPTCError, self._iptc.xtables.XTablesError, ValueError) as error:
                self._filled.clear()
                raise KernelError(f"iptables, table {name}: {error}") from error

    # --- the fixed rules ----------------------------------------------------------------

    def _prepare_nat(self, nat: Any) -> None:
        self._prepare(nat, "POSTROUTING", HAIRPIN, self._hairpins)
        for chain in ("PREROUTING", "OUTPUT"):
            self._prepare(nat, chain, ROOT, None)
        # Somebody may have emptied our chain, and left the blocks as they were.
        jumps = set(_targets(nat, ROOT))
        for block in filter(_BLOCK_NAME.fullmatch, _chain_names(nat)):
            if block not in jumps:
                self._iptc.Chain(nat, ROOT).append_rule(self._block_jump(block))

    def _prepare(
        self, table: Any, builtin: str, name: str, fixed: Callable[[], list[Any]] | None
    ) -> bool:
        """Make a chain of ours, fill it, and have the builtin chain begin with a jump to it.

        ``fixed`` makes the chain's rules; None if they are not fixed. Returns whether anything
        had to be done.
        """
        done = self._fill(table, name, fixed)
        if name not in _targets(table, builtin):
            rule = self._rule(lambda rule: rule.create_target(name))
            self._iptc.Chain(table, builtin).insert_rule(rule)
            done = True
        return done

    def _fill(self, table: Any, name: str, fixed: Callable[[], list[Any]] | None) -> bool:
        """Once in this process whatever is there, since an earlier dpfd had other settings."""
        present = table.is_chain(name)
        if not present:
            table.create_chain(name)
        if fixed is None:
            return not present
        if self._filled.get((table.name, name)) == len(_targets(table, name)):
            return False
        chain, rules = self._iptc.Chain(table, name), fixed()
        chain.flush()
        for rule in rules:
            chain.append_rule(rule)
        self._filled[table.name, name] = len(rules)
        return True

    def _accepts(self) -> list[Any]:
        return [
            self._forwarded(host, lambda rule: rule.create_target("ACCEPT"))
            for host in self._layout.hosts
        ]

    def _hairpins(self) -> list[Any]:
        return [
            self._hairpin(host, interface, network)
            for host in self._layout.hosts
            for interface, network in self._layout.inside
        ]

    def _hairpin(self, host: str, interface: str, network: str) -> Any:
        def fill(rule: Any) -> None:
            rule.src, rule.out_interface = network, interface
            rule.create_target("SNAT").to_source = host

        return self._forwarded(host, fill)

    def _forwarded(self, host: str, fill: Callable[[Any], Any]) -> Any:
        """Return a rule for connections, both directions, that were forwarded for ``host``."""

        def matches(rule: Any) -> None:
            match = rule.create_match("conntrack")
            match.ctstate = "DNAT"
            match.ctorigdst = host
            match.ctorigdstport = f"{self._layout.low}:{self._layout.high}"
            fill(rule)

        return self._rule(matches)

    def _rule(self, fill: Callable[[Any], Any]) -> Any:
        rule = self._iptc.Rule()
        rule.protocol = "tcp"
        fill(rule)
        return rule

    # --- mappings -----------------------------------------------------------------------

    def _add(self, nat: Any, rule: Rule) -> None:
        block = _block(rule)
        if not nat.is_chain(block):
            nat.create_chain(block)
            self._iptc.Chain(nat, ROOT).append_rule(self._block_jump(block))
        self._iptc.Chain(nat, block).append_rule(self._forward(rule))

    def _remove(self, nat: Any, rule: Rule) -> None:
        block = _block(rule)
        if not nat.is_chain(block):
            return
        entries = [entry.rule() for entry in _entries(nat, block)]
        if rule not in entries:
            return
        self._iptc.Chain(nat, block).delete_rule(self._forward(rule))
        if len(entries) == 1:
            self._drop_block(nat, rule)

    def _drop_block(self, nat: Any, rule: Rule) -> None:
        block = _block(rule)
        if block in _targets(nat, ROOT):
            self._iptc.Chain(nat, ROOT).delete_rule(self._block_jump(block))
        nat.delete_chain(block)

    def _block_jump(self, block: str) -> Any:
        """The jump to a block's chain: which host and ports, its name says."""
        host, number = _BLOCK_NAME.fullmatch(block).groups()  # type: ignore[union-attr]
        low = int(number, 16) * BLOCK
        made = self._matching(_host_of(host), f"{low}:{low + BLOCK - 1}")
        made.create_target(block)
        return made

    def _forward(self, rule: Rule) -> Any:
        made = self._matching(rule.public[0], str(rule.public[1]))
        made.create_target("DNAT").to_destination = f"{rule.inside[0]}:{rule.inside[1]}"
        return made

    def _matching(self, host: str, ports: str) -> Any:
        def fill(rule: Any) -> None:
            rule.dst = host
            rule.create_match("tcp").dport = ports

        return self._rule(fill)

    # --- the end ------------------------------------------------------------------------

    def _remove_jumps(self, table: Any, builtin: str) -> None:
        for name in (ROOT, HAIRPIN):
            while name in _targets(table, builtin):
                rule = self._rule(lambda rule, name=name: rule.create_target(name))  # type: ignore[misc]
                self._iptc.Chain(table, builtin).delete_rule(rule)


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


def _exists(name: str) -> bool:
    """Whether this namespace has a legacy table; looking is what does not make one."""
    try:
        return name in _NAMES.read_text().split()
    except OSError:
        return False


def _block(rule: Rule) -> str:
    host = socket.inet_aton(rule.public[0]).hex().upper()
    return f"{ROOT}-{host}-{rule.public[1] // BLOCK:02X}"


def _host_of(digits: str) -> str:
    return socket.inet_ntoa(bytes.fromhex(digits))


def _chain_names(table: Any) -> list[str]:
    return [chain.name for chain in table.chains]


def _raw_entries(table: Any, chain: str) -> Iterator[Any]:
    entry = table.first_rule(chain)
    while entry:
        yield entry
        entry = table.next_rule(entry)


def _entries(table: Any, chain: str) -> list[Entry]:
    return [parse_entry(_bytes(raw)) for raw in _raw_entries(table, chain)]


def _targets(table: Any, chain: str) -> list[str]:
    """The names of the targets of a chain's rules; of a jump, the chain."""
    return [(table.get_target(raw) or b"").decode() for raw in _raw_entries(table, chain)]


def _bytes(raw: Any) -> bytes:
    return ctypes.string_at(ctypes.addressof(raw), raw.next_offset)


def _remove_chains(table: Any) -> None:
    names = [n for n in _chain_names(table) if n == ROOT or n.startswith(f"{ROOT}-")]
    for name in names:
        table.flush_entries(name)
    for name in names:
        table.delete_chain(name)
