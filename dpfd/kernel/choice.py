"""Which back end sets the rules: what the administrator says, or what the gateway uses already.

It must never bring into being the firewall that is not used: to look at a legacy table makes it,
and python-iptables' import runs modprobe.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import NamedTuple

from gcbpatch.errors import ConfigError

from . import forwarding, legacy, tools
from .blocks import BLOCK_NAME
from .firewall import BackEnd
from .netlink import Netlink
from .nftables import Nftables
from .port import KernelError, Layout
from .ruleset import TABLE

log = logging.getLogger("dpfd")

NAMES = ("nftables", "iptables")


class Choice(NamedTuple):
    """The name of a back end, and why it was taken."""

    name: str
    why: str


def choose(wish: str) -> Choice:
    """Return which back end to use; ``wish`` is its name or "auto".

    Raises ConfigError if none can be used. A gateway with rules in the legacy nat table is
    one whose administrator looks there; everywhere else nftables is.
    """
    if wish in NAMES:
        return Choice(wish, "as configured")
    with_nft, with_iptables = _why_no_nftables(), _why_no_iptables()
    if not with_iptables and _has_legacy_rules():
        return Choice("iptables", "the legacy nat table is in use here")
    if not with_nft:
        return Choice("nftables", "the legacy nat table is not in use here")
    if not with_iptables:
        return Choice("iptables", f"nftables cannot be used: {with_nft}")
    raise ConfigError(
        f"no back end: for nftables, {with_nft}; for iptables, {with_iptables}; "
        "nft, or pip install 'gcbpatch[gateway]', would be right"
    )


def back_end(name: str, layout: Layout) -> BackEnd:
    """Return a back end. Raises ConfigError and KernelError."""
    if name == "nftables":
        if problem := _why_no_nftables():
            raise ConfigError(f"backend nftables: {problem}; --backend iptables would be right")
        return Nftables(layout)
    from .iptables import Iptables  # its python-iptables runs modprobe

    return Iptables(layout)


def clear_other(name: str, layout: Layout) -> None:
    """Remove what a dpfd with the other back end has left for the same addresses.

    Raises KernelError.
    """
    other = next(each for each in NAMES if each != name)
    if not _has_rules_of_dpfd(other):
        return
    if other == "iptables" and (problem := _why_no_iptables()):
        log.warning("chains of dpfd's are left in legacy iptables, and stay: %s", problem)
        return
    left = back_end(other, layout)
    try:
        rules = left.read().rules
        if rules:
            left.apply([], rules)
            log.info("%d rules were left from when the back end was %s", len(rules), other)
    finally:
        left.close()


def flush(wish: str) -> None:
    """Remove everything of dpfd's from the back ends that are meant. Raises KernelError."""
    for name in NAMES if wish == "auto" else (wish,):
        if _has_rules_of_dpfd(name):
            left = back_end(name, Layout((), 1, 65535, ()))
            try:
                left.flush()
            finally:
                left.close()
    forwarding.remove_all()


def _why_no_nftables() -> str:
    """Return what is missing, or nothing."""
    if not tools.there_is("nft"):
        return "nft is not installed"
    try:
        Netlink().close()
        tools.run(["nft", "list", "tables"])
    except KernelError as error:
        return str(error)
    return ""


def _why_no_iptables() -> str:
    there = importlib.util.find_spec("iptc") is not None
    return "" if there else "python-iptables is not installed"


def _has_legacy_rules() -> bool:
    """Whether the legacy nat table holds a rule of somebody's, or a mapping of dpfd's."""
    return legacy.table_exists("nat") and any(
        not chain.startswith("DPFD") or BLOCK_NAME.fullmatch(chain)
        for chain, entry in legacy.entries("nat")
        if chain or entry.target
    )


def _has_rules_of_dpfd(name: str) -> bool:
    if name == "iptables":
        return legacy.table_exists("nat") and any(
            chain.startswith("DPFD") for chain, _ in legacy.entries("nat")
        )
    return tools.there_is("nft") and tools.succeeds(["nft", "-t", "list", "table", "ip", TABLE])
