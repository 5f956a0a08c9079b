"""Lets forwarded connections through chains, of either firewall world, that could drop them.

An accept in a table of our own overrides nobody's drop, so a rule goes to the head of every chain
that filters forwarded IPv4 and could drop: for TCP and UDP that was translated for a public
address and port of this dpfd. It carries a comment; what has not this comment is never touched,
nor is what another dpfd has put there for its own addresses. Chains of iptables, legacy or nft,
get their rules from the tool that made them: iptables-nft cannot read tables with anybody else's
rules in them. Neither world is brought into being by looking at it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import tools
from .legacy import table_exists
from .port import Layout

COMMENT = "dpfd"
PROTOCOLS = ("udp", "tcp")
"""Each is put at the head, so the last one comes first: it has the more packets to wait."""
_FAMILIES = ("ip", "inet")
_IPTABLES_NFT = ("ip", "filter", "FORWARD")


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of nftables at the forward hook."""

    family: str
    table: str
    name: str
    drops: bool
    """Whether it drops what reaches its end."""

    @property
    def path(self) -> tuple[str, str, str]:
        """How nft calls it."""
        return self.family, self.table, self.name


class ForwardAccept:
    """The tagged rules for one dpfd."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def ensure(self) -> list[str]:
        """Put rules where they are missing; return the names of these chains.

        Raises KernelError. Without nft on the gateway only legacy iptables is seen to.
        """
        done = []
        for chain in _chains():
            rules = _rules(chain)
            ours = [rule for rule in rules if rule.get("comment") == COMMENT]
            if not (chain.drops or len(rules) > len(ours)):
                continue
            tool = _tool_of(chain)
            if self._ensure_xt(tool) if tool else self._ensure_nft(chain, ours):
                done.append(" ".join(chain.path))
        if _legacy_could_drop() and self._ensure_xt("iptables-legacy"):
            done.append("FORWARD of legacy iptables")
        return done

    def remove(self) -> None:
        """Remove the rules of this dpfd, for instance before its addresses change."""
        for chain in _chains():
            tool = _tool_of(chain)
            if tool:
                self._remove_xt(tool)
                continue
            _delete(chain, [rule for rule in _rules(chain) if self._is_mine(rule)])
        if table_exists("filter"):
            self._remove_xt("iptables-legacy")

    def plan(self) -> Iterator[str]:
        """Yield what ensure() would look after, as commands."""
        for chain in _chains():
            tool = _tool_of(chain)
            if tool:
                yield from (" ".join(_xt(tool, "-I", args)) for args in self._xt_rules())
            else:
                for protocol in PROTOCOLS:
                    words = f"insert rule {' '.join(chain.path)} {self._shown(protocol)}"
                    yield f"nft {shlex.quote(words)}"
        if table_exists("filter"):
            rules = self._xt_rules()
            yield from (" ".join(_xt("iptables-legacy", "-I", args)) for args in rules)

    def _ensure_nft(self, chain: Chain, ours: list[dict[str, Any]]) -> bool:
        wanted = [self._expression(protocol) for protocol in PROTOCOLS]
        mine = [rule for rule in ours if self._is_mine(rule)]
        there = [rule["expr"] for rule in mine]
        stale = [rule for rule in mine if rule["expr"] not in wanted]
        commands: list[dict[str, Any]] = [_deletion(chain, rule) for rule in stale]
        for expression in wanted:
            if expression not in there:
                commands.append({"insert": {"rule": _rule_of(chain, expression)}})
        _carry_out(commands)
        return bool(commands)

    def _is_mine(self, rule: dict[str, Any]) -> bool:
        """Whether a rule is for addresses of this dpfd, now or before its settings changed."""
        if rule.get("comment") != COMMENT:
            return False
        rights = {_left(one): one["match"]["right"] for one in rule["expr"] if "match" in one}
        hosts, ports = rights.get("ip daddr"), rights.get("proto-dst")
        if hosts is None or ports is None:
            return True
        low, high = ports["range"] if isinstance(ports, dict) else (ports, ports)
        named = set(hosts["set"]) if isinstance(hosts, dict) else {hosts}
        return self._layout.overlaps(low, high) and bool(named & set(self._layout.hosts))

    def _expression(self, protocol: str) -> list[dict[str, Any]]:
        """One rule for each protocol: nft 1.0.6 cannot read ports of conntrack's for several."""
        known = self._layout.hosts
        hosts: Any = known[0] if len(known) == 1 else {"set": sorted(known)}
        low, high = self._layout.low, self._layout.high
        ports: Any = low if low == high else {"range": [low, high]}
        return [
            _match("==", {"meta": {"key": "l4proto"}}, protocol),
            _match("in", {"ct": {"key": "status"}}, "dnat"),
            _match("==", {"ct": {"key": "ip daddr", "dir": "original"}}, hosts),
            _match("==", {"ct": {"key": "proto-dst", "dir": "original"}}, ports),
            {"accept": None},
        ]

    def _shown(self, protocol: str) -> str:
        hosts = ", ".join(self._layout.hosts)
        return (
            f"meta l4proto {protocol} ct status dnat ct original ip daddr {{ {hosts} }} "
            f'ct original proto-dst {self._layout.low}-{self._layout.high} accept comment "dpfd"'
        )

    def _ensure_xt(self, tool: str) -> bool:
        wanted = self._xt_rules()
        missing = [args for args in wanted if not tools.succeeds(_xt(tool, "-C", args))]
        for args in missing:
            tools.run(_xt(tool, "-I", args))
        return bool(missing)

    def _remove_xt(self, tool: str) -> None:
        for args in self._xt_rules():
            if tools.succeeds(_xt(tool, "-C", args)):
                tools.run(_xt(tool, "-D", args))

    def _xt_rules(self) -> Iterator[list[str]]:
        ports = ["--ctorigdstport", f"{self._layout.low}:{self._layout.high}"]
        tag = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]
        for host in self._layout.hosts:
            for protocol in PROTOCOLS:
                matches = ["conntrack", "--ctstate", "DNAT", "--ctorigdst", host]
                yield ["-p", protocol, "-m", *matches, *ports, *tag]


def remove_all() -> None:
    """Remove every tagged rule, whatever hosts and ports it is for. Raises KernelError."""
    for chain in _chains():
        tool = _tool_of(chain)
        if tool:
            _remove_tagged(tool)
        _delete(chain, [rule for rule in _rules(chain) if rule.get("comment") == COMMENT])
    if table_exists("filter") and tools.there_is("iptables-legacy"):
        _remove_tagged("iptables-legacy")


def _remove_tagged(tool: str) -> None:
    """iptables prints its rules as the arguments that made them."""
    for line in tools.run([tool, "-w", "-S", "FORWARD"]).splitlines():
        words = line.split()
        if words[0] == "-A" and f"--comment {COMMENT} " in f"{line} ":
            tools.run([tool, "-w", "-D", *words[1:]])


def _legacy_could_drop() -> bool:
    """Whether there is a legacy filter table whose FORWARD does more than to accept."""
    if not table_exists("filter"):
        return False
    lines = tools.run(["iptables-legacy", "-w", "-S", "FORWARD"]).splitlines()
    return any(line != "-P FORWARD ACCEPT" and COMMENT not in line.split() for line in lines)


def _chains() -> list[Chain]:
    """The base chains of nftables that filter forwarded IPv4."""
    if not tools.there_is("nft"):
        return []
    text = tools.run(["nft", "-j", "list", "chains"])
    found = (item["chain"] for item in json.loads(text)["nftables"] if "chain" in item)
    return [
        Chain(chain["family"], chain["table"], chain["name"], chain.get("policy") == "drop")
        for chain in found
        if chain.get("hook") == "forward" and chain["family"] in _FAMILIES
    ]


def _tool_of(chain: Chain) -> str:
    """Return which tool made a chain, if it was not nft."""
    made_by_iptables = chain.path == _IPTABLES_NFT and tools.there_is("iptables-nft")
    return "iptables-nft" if made_by_iptables else ""


def _rules(chain: Chain) -> list[dict[str, Any]]:
    text = tools.run(["nft", "-j", "list", "chain", *chain.path])
    return [item["rule"] for item in json.loads(text)["nftables"] if "rule" in item]


def _left(expression: dict[str, Any]) -> str:
    """Return which key of conntrack's a match looks at."""
    left = expression["match"]["left"]
    return str(left["ct"]["key"]) if isinstance(left, dict) and "ct" in left else ""


def _rule_of(chain: Chain, expression: list[dict[str, Any]]) -> dict[str, Any]:
    family, table, name = chain.path
    where = {"family": family, "table": table, "chain": name}
    return {**where, "expr": expression, "comment": COMMENT}


def _deletion(chain: Chain, rule: dict[str, Any]) -> dict[str, Any]:
    family, table, name = chain.path
    where = {"family": family, "table": table, "chain": name}
    return {"delete": {"rule": {**where, "handle": rule["handle"]}}}


def _delete(chain: Chain, rules: list[dict[str, Any]]) -> None:
    _carry_out([_deletion(chain, rule) for rule in rules])


def _carry_out(commands: list[dict[str, Any]]) -> None:
    if commands:
        tools.run(["nft", "-j", "-f", "-"], json.dumps({"nftables": commands}))


def _match(op: str, left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _xt(tool: str, action: str, args: list[str]) -> list[str]:
    return [tool, "-w", action, "FORWARD", *args]
