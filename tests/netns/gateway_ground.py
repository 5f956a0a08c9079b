"""dpfd on a gateway, a client inside, and its three representations side by side.

What depends on the back end stands in BACK_ENDS: how its rules are read, flushed and spoiled by
somebody else's hand.
"""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gcbpatch.addresses import GATEWAY_PORT, Address, parse_host_port
from gcbpatch.errors import RefusedError
from gcbpatch.wire.messages import TCP
from tests.loopback.gateway_client import GatewayClient, Management, random_id
from tests.netns.lab import Gateway, Host, Program
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import dial, listen

INSIDE = "10.1.0.0/24"
Forwards = dict[Address, Address]
"""Mappings as public address to inside address."""


def command(gateway: Gateway, mirror: Path, *flags: str) -> list[str]:
    argv = [sys.executable, "-m", "dpfd", "--private", gateway.inside_interface]
    return [*argv, "--public", gateway.public_interface, "--mirror", str(mirror), *flags]


def start(
    gateway: Gateway, mirror: Path, *flags: str, fault: str = "", ready: bool = True
) -> Program:
    """dpfd on a gateway, ready; with a fault (see dpfd/faults.py) it may die before."""
    env = {"DPFD_FAULT": fault}
    daemon = gateway.popen(command(gateway, mirror, *flags), privileged=True, env=env)
    if ready and not fault:
        daemon.wait_line("^dpfd ready on ")
    return daemon


class Client:
    """A host inside with a listener, a management socket and a command session."""

    def __init__(self, host: Host, gateway: Gateway, port: int = 0) -> None:
        self.host = host
        self.server: Address = (gateway.inside_address, GATEWAY_PORT)
        self.listener = listen(host, port)
        self.inside: Address = (host.address, self.listener.getsockname()[1])
        self.management = Management(host.address, host.socket())
        self.id = random_id()
        self.client = random_id()
        self.session: GatewayClient | None = None

    def reconnect(self) -> GatewayClient:
        if self.session is not None:
            self.session.close()
        link = dial(self.host, *self.server)
        self.session = GatewayClient(self.server, client=self.client, link=link)
        self.session.open()
        return self.session

    @property
    def talk(self) -> GatewayClient:
        return self.session or self.reconnect()

    def forward(self, listener: bytes | None = None, **wishes: object) -> Address:
        reply = self.talk.forward(listener or self.id, self.inside, self.management, **wishes)
        return reply.public.address

    def accept(self) -> tuple[socket.socket, Address]:
        connection, peer = self.listener.accept()
        connection.settimeout(HANG_LIMIT)
        return connection, peer


def table(client: Client, addresses: list[Address]) -> Forwards:
    """dpfd's own table, as QUERY tells it, of these public addresses."""
    held: Forwards = {}
    for public in addresses:
        try:
            held[public] = client.talk.query(public)
        except RefusedError:
            continue
    return held


def mirrored(mirror: Path, copies: Path) -> Forwards:
    """What the mirror file holds, read from a copy, since a running dpfd holds it."""
    copies.mkdir(exist_ok=True)
    for old in copies.iterdir():
        old.unlink()
    for path in (mirror, Path(f"{mirror}-wal")):
        if path.exists():
            shutil.copy(path, copies / path.name)
    connection = sqlite3.connect(copies / mirror.name)
    columns = "protocol, public_host, public_port, inside_host, inside_port"
    try:
        rows = connection.execute(f"SELECT {columns} FROM mappings").fetchall()
    finally:
        connection.close()
    assert all(protocol == TCP for protocol, *_ in rows)
    return {(a, b): (x, y) for _, a, b, x, y in rows}


@dataclass(frozen=True)
class BackEnd:
    """What a test has to know of a back end: its rules, and what others may do to them.

    ``damages`` are what other programs do to dpfd's own; ``add`` puts a mapping of nobody's
    beside dpfd's; ``reboot`` leaves the kernel as a start of the machine does.
    """

    name: str
    rules: Callable[[Gateway], Forwards]
    damages: tuple[str, ...]
    damage: Callable[[Gateway, str], None]
    add: Callable[[Gateway, Address, Address], None]
    reboot: Callable[[Gateway], None]


def legacy(gateway: Gateway, *args: str) -> str:
    """iptables' nat table."""
    argv = ["iptables-legacy", "-w", "-t", "nat", *args]
    return gateway.run(argv, privileged=True).stdout


def _legacy_rules(gateway: Gateway) -> Forwards:
    pattern = r"-A DPFD-\S+ -d (\S+)/32 .*--dport (\d+) -j DNAT --to-destination (\S+)"
    found = re.findall(pattern, legacy(gateway, "-S"))
    held: Forwards = {}
    for host, port, inside in found:
        assert (host, int(port)) not in held, "a rule is there twice"
        held[host, int(port)] = parse_host_port(inside, 0)
    return held


def _blocks(gateway: Gateway) -> list[str]:
    return re.findall(r"^-N (DPFD-[0-9A-F]{8}-[0-9A-F]{2})$", legacy(gateway, "-S"), re.M)


def _damage_legacy(gateway: Gateway, what: str) -> None:
    block = _blocks(gateway)[0]
    if what == "everything is flushed":
        legacy(gateway, "-F")
        legacy(gateway, "-X")
    elif what == "all chains are emptied":
        legacy(gateway, "-F")
    elif what == "a block is emptied":
        legacy(gateway, "-F", block)
    elif what == "a rule is deleted by hand":
        legacy(gateway, "-D", block, "1")
    elif what == "a rule is there twice":
        rule = re.search(rf"^-A ({block} .*)$", legacy(gateway, "-S"), re.M)
        assert rule
        legacy(gateway, "-A", *rule[1].split())
    else:
        legacy(gateway, "-D", "PREROUTING", "-j", "DPFD")


def _add_legacy(gateway: Gateway, public: Address, inside: Address) -> None:
    match = f"-d {public[0]}/32 -p tcp -m tcp --dport {public[1]}"
    target = f"-j DNAT --to-destination {inside[0]}:{inside[1]}"
    legacy(gateway, "-A", _blocks(gateway)[0], *match.split(), *target.split())


def _reboot_legacy(gateway: Gateway) -> None:
    legacy(gateway, "-F")
    legacy(gateway, "-X")


def nft(gateway: Gateway, *words: str) -> str:
    """The tool nft."""
    return gateway.run(["nft", *words], privileged=True).stdout


def _nft_rules(gateway: Gateway) -> Forwards:
    listed = nft(gateway, "list", "table", "ip", "dpfd")
    ports = listed.partition("map ports {")[2].partition("}\n\n")[0]
    pattern = r"tcp \. (\S+) \. (\d+) timeout \S+ expires \S+ : (\S+) \. (\d+)"
    found = re.findall(pattern, ports)
    return {(host, int(port)): (to, int(at)) for host, port, to, at in found}


def _key(public: Address) -> str:
    return f"tcp . {public[0]} . {public[1]}"


def _damage_nft(gateway: Gateway, what: str) -> None:
    if what == "everything is flushed":
        nft(gateway, "flush", "table", "ip", "dpfd")
        nft(gateway, "delete", "table", "ip", "dpfd")
    elif what == "all chains are emptied":
        nft(gateway, "flush", "table", "ip", "dpfd")
    elif what == "the map is emptied":
        nft(gateway, "flush", "map", "ip", "dpfd", "ports")
    elif what == "a rule is deleted by hand":
        public = next(iter(_nft_rules(gateway)))
        nft(gateway, "delete", "element", "ip", "dpfd", "ports", f"{{ {_key(public)} }}")
    else:
        nft(gateway, "flush", "map", "ip", "dpfd", "hosts")


def _add_nft(gateway: Gateway, public: Address, inside: Address) -> None:
    entry = f"{_key(public)} timeout 1h : {inside[0]} . {inside[1]}"
    nft(gateway, "add", "element", "ip", "dpfd", "ports", f"{{ {entry} }}")


def _reboot_nft(gateway: Gateway) -> None:
    nft(gateway, "delete", "table", "ip", "dpfd")


BACK_ENDS = (
    BackEnd(
        "nftables",
        _nft_rules,
        (
            "everything is flushed",
            "all chains are emptied",
            "the map is emptied",
            "a rule is deleted by hand",
            "the hairpin's hosts are gone",
        ),
        _damage_nft,
        _add_nft,
        _reboot_nft,
    ),
    BackEnd(
        "iptables",
        _legacy_rules,
        (
            "everything is flushed",
            "all chains are emptied",
            "a block is emptied",
            "a rule is deleted by hand",
            "a rule is there twice",
            "the jump is deleted",
        ),
        _damage_legacy,
        _add_legacy,
        _reboot_legacy,
    ),
)
