"""What goes through a mapping, and what the firewalls of a gateway hold: words for dpfd's tests."""

import hashlib
import os
import re
import socket
import sys
import threading
from pathlib import Path

from gcbpatch.addresses import Address
from tests.netns.gateway_ground import Client
from tests.netns.lab import Gateway, Node
from tests.netns.lab.program import HANG_LIMIT
from tests.netns.talk import dial


def carries(node: Node, public: Address, client: Client) -> Address:
    """Connect, move bytes both ways, compare; return the peer address that the client saw."""
    near = dial(node, *public)
    far, peer = client.accept()
    with near, far:
        for sender, receiver in ((near, far), (far, near)):
            data = os.urandom(1 << 18)
            pump = threading.Thread(target=send_all, args=(sender, data), daemon=True)
            pump.start()
            assert hashlib.sha256(read_all(receiver)).digest() == hashlib.sha256(data).digest()
            pump.join(HANG_LIMIT)
    return peer


def send_all(link: socket.socket, data: bytes) -> None:
    link.sendall(data)
    link.shutdown(socket.SHUT_WR)


def read_all(link: socket.socket) -> bytes:
    return b"".join(iter(lambda: link.recv(65536), b""))


def echoes(near: socket.socket, far: socket.socket) -> bool:
    near.sendall(b"still there?")
    return far.recv(100) == b"still there?"


def flush(gateway: Gateway, mirror: Path, *flags: str) -> None:
    argv = [sys.executable, "-m", "dpfd", "--flush", "--mirror", str(mirror), *flags]
    gateway.run(argv, privileged=True)


def iptables(gateway: Gateway, *args: str, table: str = "nat", which: str = "legacy") -> str:
    argv = [f"iptables-{which}", "-w", "-t", table, *args]
    return gateway.run(argv, privileged=True).stdout


def everything(gateway: Gateway) -> str:
    """All rules of both firewall worlds, without counters, handles and times."""
    worlds = [iptables(gateway, "-S", table=table) for table in ("nat", "filter", "mangle")]
    worlds.append(gateway.run(["nft", "-s", "list", "ruleset"], privileged=True).stdout)
    return re.sub(" expires [0-9a-z]+", "", "\n".join(worlds))
