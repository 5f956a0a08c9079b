"""What the iptables back end does after routing: hairpins, and the sources of UDP.

A chain for each public host of each dpfd, with rules that change with the settings only. It must
never touch the chain of another dpfd, which is told by the ports in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import blocks
from .blocks import AFTER, SOURCES
from .port import Layout
from .xtables import append, chain_names, delete, targets


class AfterRouting:
    """The chains of one dpfd."""

    def __init__(self, iptc: Any, layout: Layout, former: tuple[str, ...] = ()) -> None:
        """``former`` are public hosts that were this dpfd's until now."""
        self._iptc = iptc
        self._layout = layout
        self._known = {*layout.hosts, *former}
        self._filled: dict[str, int] = {}

    def prepare(self, nat: Any) -> None:
        """Make and fill the chains, and remove those of settings that are no more."""
        wanted = {blocks.own(h, self._layout.low, self._layout.high): h for h in self._layout.hosts}
        for name in chain_names(nat):
            if self._is_stale(name) and name not in wanted:
                delete(nat, AFTER, blocks.plain_jump(name))
                nat.flush_entries(name)
                nat.delete_chain(name)
        there = set(targets(nat, AFTER))
        for name, host in wanted.items():
            self._fill(nat, name, host)
            if name not in there:
                append(nat, AFTER, blocks.plain_jump(name))

    def _is_stale(self, name: str) -> bool:
        found = blocks.own_name(name)
        return found is not None and found[0] in self._known and self._layout.overlaps(*found[1:])

    def _fill(self, nat: Any, name: str, host: str) -> None:
        """Once in this process whatever is there, since an earlier dpfd had other settings."""
        if not nat.is_chain(name):
            nat.create_chain(name)
        elif self._filled.get(name) == len(targets(nat, name)):
            return
        chain, rules = self._iptc.Chain(nat, name), list(self._rules(host))
        chain.flush()
        for rule in rules:
            chain.append_rule(rule)
        self._filled[name] = len(rules)

    def _rules(self, host: str) -> Iterator[Any]:
        """Hairpins; then what goes to the world, which is all that does not stay inside."""
        for interface, network in self._layout.inside:
            yield self._hairpin("udp", host, (interface, network), _jump_to(SOURCES))
            for protocol in ("tcp", "udp"):
                yield self._hairpin(protocol, host, (interface, network), _translate(host))
        for interface, _ in self._layout.inside:
            yield self._rule("udp", _leaves_by(interface), _jump_to("RETURN"))
        yield self._rule("udp", _jump_to(SOURCES))

    def _hairpin(
        self, protocol: str, host: str, inside: tuple[str, str], target: Callable[[Any], Any]
    ) -> Any:
        """Return a rule for what was forwarded for ``host`` and comes from inside, to inside."""
        interface, network = inside

        def matches(rule: Any) -> None:
            match = rule.create_match("conntrack")
            match.ctstate = "DNAT"
            match.ctorigdst = host
            match.ctorigdstport = f"{self._layout.low}:{self._layout.high}"
            rule.src = network

        return self._rule(protocol, matches, _leaves_by(interface), target)

    def _rule(self, protocol: str, *fills: Callable[[Any], Any]) -> Any:
        rule = self._iptc.Rule()
        rule.protocol = protocol
        for fill in fills:
            fill(rule)
        return rule


def _jump_to(name: str) -> Callable[[Any], Any]:
    return lambda rule: rule.create_target(name)


def _translate(host: str) -> Callable[[Any], Any]:
    def fill(rule: Any) -> None:
        rule.create_target("SNAT").to_source = host

    return fill


def _leaves_by(interface: str) -> Callable[[Any], Any]:
    def fill(rule: Any) -> None:
        rule.out_interface = interface

    return fill
