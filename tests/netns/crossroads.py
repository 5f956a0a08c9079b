"""All kinds of networks in one lab, a listener of each sort in each, and one broker in public.

Listeners' networks are on one public segment, connectors' on another. Which path a TCP connection
took, or the datagrams between two programs of ours, stands in the log of the connector's agent;
whose other datagrams a listener gets is seen by its host's kernel, which keeps their sources and
sizes: each pair of programs has a size of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.netns.lab import Host, Lab, Network, Program
from tests.netns.matrix import CONNECTORS, KINDS, NEIGHBOUR, NOTHING, Cell
from tests.netns.pairs import PROGRAMS

CROSSING = str(PROGRAMS / "crossing.py")
PATIENCE = 30.0
SILENCE = 1.0
"""Seconds without an answer that count as none, where none is expected."""
SMALLEST, STEP = 600, 24
"""UDP payloads in octets; the relay's header makes a datagram longer by less than a step."""
SORTS = [(one, other) for one in ("GCB", "ordinary") for other in ("GCB", "ordinary")]
NATS: dict[str, dict[str, Any]] = {
    "filtering": {"unsolicited": "drop"},
    "randomising": {"unsolicited": "drop", "mapping": "random"},
    "shifting": {"unsolicited": "drop", "mapping": "shifting"},
    "resetting": {"unsolicited": "rst"},
    "nested": {"unsolicited": "drop"},
    "blocked": {"unsolicited": "drop", "block_udp": True},
}
UDP_HEADER = 8
SPY = """
    table inet spy {
        set seen { typeof udp length . ip saddr; size 65535; flags dynamic; }
        chain in {
            type filter hook prerouting priority raw - 100; policy accept;
            udp length >= 608 add @seen { udp length . ip saddr }
        }
    }
"""


class Crossroads:
    """The lab, with everybody listening once `listen` has returned."""

    def __init__(self, lab: Lab, tmp: Path) -> None:
        self._lab, self._tmp = lab, tmp
        self._inside = iter(range(1, 250))
        self.broker = lab.host("broker")
        self.listeners: dict[str, Host] = {}
        self.connectors: dict[str, Host] = {}
        self._neighbours: dict[str, Host] = {}
        self._addresses: dict[tuple[str, str, str], tuple[str, int]] = {}
        far = lab.segment()
        for kind in KINDS:
            self.listeners[kind], neighbour = self._place(f"to-{kind}", kind, lab.internet)
            self.connectors[kind], _ = self._place(f"from-{kind}", kind, far)
            if neighbour is not None:
                self._neighbours[kind] = neighbour

    def _place(self, name: str, kind: str, network: Network) -> tuple[Host, Host | None]:
        """A host of one kind, and another in its private network, if it is in one."""
        if kind not in NATS:
            firewall = "accept" if kind == "public" else "drop"
            return self._lab.host(name, uplink=network, firewall=firewall), None
        gateway = self._lab.gateway(
            f"nat-{name}", uplink=network, inside=f"10.{next(self._inside)}.0.0/24", **NATS[kind]
        )
        if kind == "nested":
            gateway = self._lab.gateway(
                f"inner-{name}", uplink=gateway, inside=f"10.{next(self._inside)}.0.0/24"
            )
        return gateway.host(name), gateway.host(f"next-{name}")

    def listen(self, **flags: str) -> None:
        """Start the broker, then all listeners at the same time."""
        argv = [sys.executable, "-m", "brokerd", "--address", self.broker.address]
        argv += ["--key-file", str(self._tmp / "key"), *(w for flag in flags.items() for w in flag)]
        self.broker.popen(argv).wait_line("^brokerd ready")
        running = {
            (kind, sort): self._start(host, sort)
            for kind, host in self.listeners.items()
            for sort in ("GCB", "ordinary")
        }
        for (kind, sort), program in running.items():
            for protocol, words in (("TCP", "listening on"), ("UDP", "bound to")):
                host, port = program.wait_line(rf"{words} (\S+):(\d+)").groups()
                own = self.listeners[kind].address
                self._addresses[kind, sort, protocol] = host.replace("0.0.0.0", own), int(port)
        for host in self.listeners.values():
            host.space.nft(SPY)

    def _start(self, host: Host, sort: str, *arguments: str, **options: Any) -> Program:
        if sort == "ordinary":
            return host.popen([sys.executable, CROSSING, *arguments], **options)
        env = {
            "GCB_BROKER": self.broker.address, "GCB_LOG": "INFO",
            "GCB_LOG_FILE": str(self._log(host)),
        }
        return host.popen([sys.executable, "-m", "gcbpatch", CROSSING, *arguments],
                          env=env, **options)

    def _log(self, host: Host) -> Path:
        return self._tmp / f"{host.name}.log"

    def walk(self, connector: str, cells: dict[Cell, frozenset[str]]) -> dict[Cell, str]:
        """Have a kind of connector try all these cells; return which path each one took."""
        running = {}
        for host, sort in dict.fromkeys((self._host(connector, c), c[0]) for c in cells):
            tried = [c for c in cells if (self._host(connector, c), c[0]) == (host, sort)]
            running[host.name, sort] = self._call(connector, host, sort, tried, cells)
        found: dict[Cell, str | None] = {}
        for program in running.values():
            said = json.loads(program.wait_line(r"^\{.*\}$").group(0))
            found |= {tuple(name.split()): error for name, error in said.items()}
        heard = {kind: self._heard(host) for kind, host in self.listeners.items()}
        return {
            cell: NOTHING if error else self._path(connector, cell, heard[cell[3]])
            for cell, error in found.items()
        }

    def _host(self, connector: str, cell: Cell) -> Host:
        return self._neighbours[cell[3]] if connector == NEIGHBOUR else self.connectors[connector]

    def _call(
        self, connector: str, host: Host, sort: str, tried: list[Cell],
        cells: dict[Cell, frozenset[str]],
    ) -> Program:
        """Start one connector, which tries all of its cells at once."""
        program = self._start(host, sort, "call", stdin=subprocess.PIPE)
        program.stdin.write(json.dumps([
            [" ".join(cell), cell[2], *self._address(cell), self._size(connector, cell),
             SILENCE if cells[cell] == {NOTHING} else PATIENCE]
            for cell in tried
        ]).encode() + b"\n")
        program.stdin.flush()
        return program

    def _address(self, cell: Cell) -> tuple[str, int]:
        _, sort, protocol, kind = cell
        return self._addresses[kind, sort, protocol]

    def _size(self, connector: str, cell: Cell) -> int:
        steps = list(CONNECTORS).index(connector) * len(SORTS) + SORTS.index(cell[:2])
        return SMALLEST + STEP * steps

    def _path(self, connector: str, cell: Cell, heard: list[tuple[int, str]]) -> str:
        host, port = self._address(cell)
        if cell[:3] == ("GCB", "GCB", "UDP") and host == self.broker.address:
            log = self._log(self._host(connector, cell)).read_text()
            found = re.findall(rf"datagrams for {host}:{port}: (\w+)", log)
            return str(found[-1]).lower() if found else "relayed"
        if cell[2] == "UDP":
            least = self._size(connector, cell)
            sources = {source for size, source in heard if least <= size < least + STEP}
            return self._path_of_datagrams(host, sources)
        if cell[0] == "ordinary":
            return "relayed" if host == self.broker.address else "kernel"
        log = self._log(self._host(connector, cell)).read_text()
        found = re.findall(rf"program.* connect(?:ed|ing) to {host}:{port}: (\w+)", log)
        return str(found[-1]) if found else "kernel"

    def _path_of_datagrams(self, host: str, sources: set[str]) -> str:
        """Relayed, if they came from there and nowhere else."""
        if host != self.broker.address:
            return "kernel"
        assert sources, "answers without anything that came"
        return "relayed" if sources <= {self.broker.address} else "strange"

    def _heard(self, host: Host) -> list[tuple[int, str]]:
        """Sizes and sources of the datagrams that have come to a host."""
        argv = ["nft", "-j", "list", "set", "inet", "spy", "seen"]
        listed = json.loads(host.run(argv, privileged=True).stdout)
        elements = next(o["set"].get("elem", []) for o in listed["nftables"] if "set" in o)
        return [(length - UDP_HEADER, source) for length, source in map(_concatenated, elements)]


def _concatenated(element: Any) -> tuple[int, str]:
    length, source = element["concat"]
    return length, source
