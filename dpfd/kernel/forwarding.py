"""Lets forwarded connections through nftables chains that could drop them.

An accept in a table of our own overrides nobody's drop, so one rule goes to the head of every
base chain that filters forwarded IPv4 and could drop: for TCP connections that were translated
(``ct status dnat``) for a public address and port of this dpfd. It carries a comment; what has
not this comment is never touched. Chains that iptables-nft made get their rule from
iptables-nft, which cannot read tables with anybody else's rules in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gevent import subprocess

from .port import KernelError

COMMENT = "dpfd"
_FAMILIES = ("ip", "inet")
_IPTABLES_NFT = ("ip", "filter", "FORWARD")


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain at the forward hook."""

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
    """The tagged rules for one set of public hosts and ports."""

    def __init__(self, hosts: tuple[str, ...], low: int, high: int) -> None:
        self._hosts = hosts
        self._ports = low, high

    def ensure(self) -> list[str]:
        """Put the rule where it is missing; return the names of these chains.

        Raises KernelError. Without nft on the gateway there is nothing to do.
        """
        done = []
        for chain in _chains():
            rules = _rules(chain)
            ours = [rule for rule in rules if rule.get("comment") == COMMENT]
            if not (chain.drops or len(rules) > len(ours)):
                continue
            put = self._ensure_xt if _is_iptables_nft(chain) else self._ensure_nft
            if put(chain, ours):
                done.append(" ".join(chain.path))
        return done

    def _ensure_nft(self, chain: Chain, ours: list[dict[str, Any]]) -> bool:
        wanted = self._expression()
        stale = [rule for rule in ours if rule["expr"] != wanted]
        commands: list[dict[str, Any]] = [_deletion(chain, rule) for rule in stale]
        if len(ours) == len(stale):
            commands.append({"insert": {"rule": _rule_of(chain, wanted)}})
        if commands:
            _run(["nft", "-j", "-f", "-"], json.dumps({"nftables": commands}))
        return bool(commands)

    def _expression(self) -> list[dict[str, Any]]:
        low, high = self._ports
        hosts: Any = self._hosts[0] if len(self._hosts) == 1 else {"set": sorted(self._hosts)}
        return [
            _match("==", {"meta": {"key": "l4proto"}}, "tcp"),
            _match("in", {"ct": {"key": "status"}}, "dnat"),
            _match("==", {"ct": {"key": "ip daddr", "dir": "original"}}, hosts),
            _match("==", {"ct": {"key": "proto-dst", "dir": "original"}}, {"range": [low, high]}),
            {"accept": None},
        ]

    def _ensure_xt(self, chain: Chain, _: list[dict[str, Any]]) -> bool:
        missing = [args for args in self._xt_rules() if not _succeeds(_xt("-C", chain, args))]
        for args in missing:
            _run(_xt("-I", chain, args))
        return bool(missing)

    def _xt_rules(self) -> Iterator[list[str]]:
        low, high = self._ports
        for host in self._hosts:
            matches = ["conntrack", "--ctstate", "DNAT", "--ctorigdst", host]
            ports = ["--ctorigdstport", f"{low}:{high}"]
            tag = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]
            yield ["-p", "tcp", "-m", *matches, *ports, *tag]


def remove_all() -> None:
    """Remove every tagged rule, whatever hosts and ports it is for. Raises KernelError."""
    for chain in _chains():
        if _is_iptables_nft(chain):
            _remove_xt(chain)
        ours = [rule for rule in _rules(chain) if rule.get("comment") == COMMENT]
        if ours:
            commands = [_deletion(chain, rule) for rule in ours]
            _run(["nft", "-j", "-f", "-"], json.dumps({"nftables": commands}))


def _remove_xt(chain: Chain) -> None:
    """iptables-nft prints its rules as the arguments that made them."""
    for line in _run(["iptables-nft", "-w", "-S", chain.name]).splitlines():
        words = line.split()
        if words[0] == "-A" and f"--comment {COMMENT} " in f"{line} ":
            _run(["iptables-nft", "-w", "-D", *words[1:]])


def _chains() -> list[Chain]:
    """The base chains that filter forwarded IPv4."""
    if shutil.which("nft") is None:
        return []
    text = _run(["nft", "-j", "list", "chains"])
    found = (item["chain"] for item in json.loads(text)["nftables"] if "chain" in item)
    return [
        Chain(chain["family"], chain["table"], chain["name"], chain.get("policy") == "drop")
        for chain in found
        if chain.get("hook") == "forward" and chain["family"] in _FAMILIES
    ]


def _is_iptables_nft(chain: Chain) -> bool:
    return chain.path == _IPTABLES_NFT and shutil.which("iptables-nft") is not None


def _rules(chain: Chain) -> list[dict[str, Any]]:
    text = _run(["nft", "-j", "list", "chain", *chain.path])
    return [item["rule"] for item in json.loads(text)["nftables"] if "rule" in item]


def _rule_of(chain: Chain, expression: list[dict[str, Any]]) -> dict[str, Any]:
    family, table, name = chain.path
    where = {"family": family, "table": table, "chain": name}
    return {**where, "expr": expression, "comment": COMMENT}


def _deletion(chain: Chain, rule: dict[str, Any]) -> dict[str, Any]:
    family, table, name = chain.path
    where = {"family": family, "table": table, "chain": name}
    return {"delete": {"rule": {**where, "handle": rule["handle"]}}}


def _match(op: str, left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _xt(action: str, chain: Chain, args: list[str]) -> list[str]:
    return ["iptables-nft", "-w", action, chain.name, *args]


def _succeeds(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _run(argv: list[str], text: str = "") -> str:
    """Run a tool and return what it prints. Raises KernelError with its complaint."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return str(done.stdout)
