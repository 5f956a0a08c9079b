"""A gateway with dpfd and as many mappings as are wanted, beside one with a static forwarding.

Both lead from the same public host to a host inside. The mappings that are there already come from
a mirror file, as after a restart. It must never know what is measured.
"""

from __future__ import annotations

import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpfd.mirror import Mirror
from gcbpatch.addresses import GATEWAY_PORT, Address
from gcbpatch.wire.messages import TCP
from tests.loopback.gateway_client import GatewayClient, Management, random_id
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.talk import dial, listen

LOW, HIGH = 10000, 32767
PUBLIC_ADDRESSES = 3
PORT = 80
MAPPINGS = 25
"""How many mappings, and ports of the static forwarding, are connected to."""
STATIC_PORT = 9000
SETTINGS = """
lifetime = 86400
probe-interval = 86400
probe-rate = 1
reconcile-interval = 86400
mappings = 100000
mappings-per-client = 100000
mappings-per-host = 100000
"""
_ABORT = struct.pack("ii", 1, 0)


@dataclass
class World:
    """Two gateways side by side; ``statics`` are what the one without dpfd forwards, by a rule."""

    lab: Lab
    pub: Host
    gateway: Gateway
    plain: Gateway
    host: Host
    listener: socket.socket
    static_listener: socket.socket
    statics: list[Address]
    hosts: tuple[str, ...]

    def sockets(self, count: int) -> list[socket.socket]:
        """Unconnected sockets of the public host, which leave nothing behind when closed."""
        made = [self.pub.space.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
        for one in made:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        return made


@contextmanager
def world() -> Iterator[World]:
    """Make the gateways; without dpfd yet."""
    with Lab() as lab:
        pub = lab.host("pub")
        gateway = lab.gateway("ga", inside="10.1.0.0/24")
        plain = lab.gateway("gb", inside="10.2.0.0/24")
        hosts = [gateway.public_address]
        hosts += [gateway.add_address() for _ in range(PUBLIC_ADDRESSES - 1)]
        host, other = gateway.host("a"), plain.host("b")
        ports = range(STATIC_PORT, STATIC_PORT + MAPPINGS)
        where = f"iifname wan ip daddr {plain.public_address} tcp dport {ports[0]}-{ports[-1]}"
        plain.space.nft(f"add rule inet lab static {where} dnat ip to {other.address}:{PORT}")
        listeners = [listen(one, PORT) for one in (host, other)]
        for one in listeners:
            one.listen(4096)
        statics = [(plain.public_address, port) for port in ports]
        yield World(lab, pub, gateway, plain, host, *listeners, statics, tuple(hosts))


class Served:
    """dpfd on the gateway of a world, with ``count`` mappings in its mirror; how long it took."""

    def __init__(self, place: World, back_end: str, count: int, folder: Path) -> None:
        self.place = place
        mirror, settings = folder / "mirror.db", folder / "dpfd.toml"
        for old in folder.iterdir():
            old.unlink()
        settings.write_text(SETTINGS)
        fill(mirror, place, count)
        argv = [sys.executable, "-m", "dpfd", "--config", str(settings), "--mirror", str(mirror)]
        argv += ["--private", "lan", "--public", "wan", "--backend", back_end, "--log", "warning"]
        began = time.perf_counter()
        self.daemon: Program = place.gateway.popen(argv, privileged=True)
        self.daemon.wait_line("^dpfd ready")
        self.seconds_to_ready = time.perf_counter() - began
        self.management = Management(place.host.address, place.host.socket())
        self.session = self.new_session()
        self._flush = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(mirror)]

    def new_session(self) -> GatewayClient:
        """An open command session."""
        server = self.place.gateway.inside_address, GATEWAY_PORT
        session = GatewayClient(server, link=dial(self.place.host, *server))
        session.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session.open()
        return session

    def forward(self, listener: bytes) -> Address:
        """Have the listener inside mapped."""
        inside = self.place.host.address, PORT
        reply = self.session.forward(listener, inside, self.management, lifetime=86400)
        return reply.public.address

    def resident(self) -> int:
        """Bytes of memory that dpfd uses."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def close(self) -> None:
        """End dpfd, and remove all that it has made."""
        self.session.close()
        self.management.close()
        self.daemon.terminate()
        self.place.gateway.run(self._flush, privileged=True)


def fill(mirror: Path, place: World, count: int) -> None:
    """Write a mirror as a dpfd with so many mappings leaves it; each is of a client of its own."""
    Mirror(str(mirror), bytes(8)).close()
    free = ((host, port) for port in range(LOW, HIGH + 1) for host in place.hosts)
    rows = [
        (random_id(), random_id(), TCP, *public, *inside, *inside, random_id(), 86400)
        for public, inside in zip(free, insides(place, count), strict=False)
    ]
    connection = sqlite3.connect(mirror)
    with connection:
        marks = ", ".join("?" * 11)
        connection.executemany(f"INSERT INTO mappings VALUES ({marks})", rows)
    connection.close()


def insides(place: World, count: int) -> Iterator[Address]:
    """Yield addresses of the host inside at which nobody listens."""
    return ((place.host.address, 1024 + number) for number in range(count))
