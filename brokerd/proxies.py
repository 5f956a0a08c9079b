"""Proxy sockets: listening sockets that stand for listeners who are somewhere else.

A watcher each with a shared callback, no greenlets: thousands of them cost kilobytes. This
room must never read from what it accepts, and knows nothing of who is behind a port.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
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
                self._accepted(sock, peer)
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
    """Return a non-blocking listening socket; raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
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


def is_local(host: str) -> bool:
    """Return whether this machine has the address ``host``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True


class ProxySockets(Protocol):
    """Whatever holds proxy sockets: Proxies, or the workers."""

    def open(self, port: int) -> bool:
        """As Proxies.open."""

    def shut(self, port: int) -> None:
        """As Proxies.shut."""


class Proxies:
    """All proxy sockets, by port."""

    def __init__(
        self, loop: Any, host: str, accepted: Callable[[int, socket.socket, Address], None]
    ) -> None:
        """``accepted(port, connection, peer)`` is called for every ordinary connection."""
        self._loop = loop
        self._host = host
        self._accepted = accepted
        self._acceptors: dict[int, Acceptor] = {}

    def __len__(self) -> int:
        return len(self._acceptors)

    def open(self, port: int) -> bool:
        """Open a proxy socket; False if the port is in use or not for this user.

        Raises OSError for everything else, such as no descriptors.
        """
        try:
            sock = listening_socket(self._host, port)
        except OSError as error:
            if is_taken(error):
                return False
            raise
        self._acceptors[port] = Acceptor(
            self._loop, sock, lambda conn, peer: self._accepted(port, conn, peer)
        )
        return True

    def shut(self, port: int) -> None:
        """Close the proxy socket on a port; connections accepted from it live on."""
        self._acceptors.pop(port).close()

    def close(self) -> None:
        """Close all."""
        for port in list(self._acceptors):
            self.shut(port)
