"""Proxy sockets: listening sockets that stand for listeners who are somewhere else.

A watcher each with a shared callback, no greenlets: thousands of them cost kilobytes. This
room must never read from what it accepts, and knows nothing of who is behind a port.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gcbpatch.addresses import Address

log = logging.getLogger("brokerd")

BACKLOG = 4096
ACCEPTS = 32
"""Connections taken from one socket per wake-up, so that one port does not starve others."""
PAUSE = 0.5
"""Seconds without accepting after the kernel had no descriptor or memory left."""

_TAKEN = (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Accepted = Callable[[socket.socket, Address], None]


class Acceptor:
    """Accepts from one listening socket; rests for a moment when descriptors run out."""

    def __init__(self, loop: Any, sock: socket.socket, accepted: Accepted) -> None:
        self._sock = sock
        self._accepted = accepted
        self._watcher = loop.io(sock.fileno(), 1)
        self._pause = loop.timer(PAUSE)
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        try:
            for _ in range(ACCEPTS):
                sock, peer = self._sock.accept()
                sock.setblocking(False)
                self._accepted(sock, peer[:2])
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Rest if it is for want of descriptors; other errors concern one connection only."""
        if error.errno in _EXHAUSTED:
            log.error("cannot accept for now: %s", error.strerror)
            self._watcher.stop()
            self._pause.start(self._resume)

    def _resume(self) -> None:
        self._watcher.start(self._readable)

    def close(self) -> None:
        """Stop, and close the listening socket: what is in its queue is reset by the kernel."""
        for watcher in (self._watcher, self._pause):
            watcher.stop()
            watcher.close()
        self._sock.close()


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket of the host's family alone; raises OSError."""
    sock = new_socket(host, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def is_taken(error: OSError) -> bool:
    """Return whether a bind failed since the port is in use or not for this user."""
    return error.errno in _TAKEN


def new_socket(host: str, kind: int) -> socket.socket:
    """Return a non-blocking socket of the family of ``host``, and of no other; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def is_local(host: str) -> bool:
    """Return whether this machine has the address ``host``."""
    try:
        with new_socket(host, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


def bind_host(host: str) -> str:
    """Return what proxy sockets bind to: all addresses, if others do not know us by our own."""
    if is_local(host):
        return host
    return "::" if ":" in host else "0.0.0.0"


class ProxySockets(Protocol):
    """Whatever holds proxy sockets: Proxies, or the workers."""

    def open(self, proxy: Address) -> bool:
        """As Proxies.open."""

    def shut(self, proxy: Address) -> None:
        """As Proxies.shut."""


class Proxies:
    """All proxy sockets, by their addresses."""

    def __init__(
        self,
        loop: Any,
        hosts: Mapping[str, str],
        accepted: Callable[[Address, socket.socket, Address], None],
    ) -> None:
        """``accepted(proxy, connection, peer)`` is called for every ordinary connection.

        ``hosts`` tells what the sockets of a host's proxy addresses are bound to.
        """
        self._loop = loop
        self._hosts = hosts
        self._accepted = accepted
        self._acceptors: dict[Address, Acceptor] = {}

    def __len__(self) -> int:
        return len(self._acceptors)

    def open(self, proxy: Address) -> bool:
        """Open the socket of a proxy address; False if its port is in use or not for this user.

        Raises OSError for everything else, such as no descriptors.
        """
        try:
            sock = listening_socket(self._hosts[proxy[0]], proxy[1])
        except OSError as error:
            if is_taken(error):
                return False
            raise
        self._acceptors[proxy] = Acceptor(
            self._loop, sock, lambda conn, peer: self._accepted(proxy, conn, peer)
        )
        return True

    def shut(self, proxy: Address) -> None:
        """Close the socket of a proxy address; connections accepted from it live on."""
        self._acceptors.pop(proxy).close()

    def close(self) -> None:
        """Close all."""
        for proxy in list(self._acceptors):
            self.shut(proxy)
