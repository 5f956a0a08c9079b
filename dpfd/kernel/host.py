"""What dpfd asks of the gateway itself: addresses of interfaces, ports that are in use.

It must never change anything.
"""

from __future__ import annotations

import errno
import ipaddress
import json
from dataclasses import dataclass

from gevent import socket, subprocess

from gcbpatch.addresses import Address
from gcbpatch.errors import ConfigError
from gcbpatch.wire.messages import UDP

from .port import KernelError

_IP_FREEBIND = 15


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An IPv4 address of an interface and the network it is in, as ``10.1.0.0/24``."""

    host: str
    network: str


def addresses_of(interface: str) -> list[InterfaceAddress]:
    """Return the IPv4 addresses of an interface, its first one first.

    Raises ConfigError if there is no such interface or it has none.
    """
    argv = ["ip", "-json", "-4", "address", "show", "dev", interface]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"`ip` (of iproute2) cannot be run: {error}") from error
    if done.returncode:
        raise ConfigError(f"interface {interface}: {done.stderr.strip()}")
    links = json.loads(done.stdout or "[]")
    infos = [info for link in links for info in link.get("addr_info", [])]
    if not infos:
        raise ConfigError(f"interface {interface} has no IPv4 address; it needs one")
    return [_interface_address(info["local"], info["prefixlen"]) for info in infos]


def _interface_address(host: str, prefix: int) -> InterfaceAddress:
    return InterfaceAddress(host, str(ipaddress.ip_network(f"{host}/{prefix}", strict=False)))


def port_in_use(protocol: int, address: Address) -> bool:
    """Return whether a TCP or UDP socket of the gateway itself holds this address.

    Found out by binding to it, without listening: the kernel's own answer, also for sockets
    bound to the wildcard address. An address that the gateway does not have (its own provider
    translates) can be bound all the same. Raises KernelError if the kernel gives no answer.
    """
    kind = socket.SOCK_DGRAM if protocol == UDP else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise KernelError(f"{address[0]}:{address[1]}: {error.strerror}") from error
    return False


def listen(address: Address, interface: str) -> socket.socket:
    """Return a listening socket that takes what arrives on ``interface`` and nothing else.

    Raises ConfigError.
    """
    listener = _bound(socket.SOCK_STREAM, address, interface)
    listener.listen(1024)
    return listener


def datagrams(address: Address, interface: str) -> socket.socket:
    """Return a UDP socket that takes what arrives on ``interface``. Raises ConfigError."""
    return _bound(socket.SOCK_DGRAM, address, interface)


def _bound(kind: int, address: Address, interface: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A packet from outside may carry a private destination: the address is no proof.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        made.bind(address)
    except OSError as error:
        made.close()
        where = f"{address[0]}:{address[1]} on {interface}"
        raise ConfigError(f"cannot listen at {where}: {error.strerror}") from error
    return made
