"""A worker: holds proxy sockets and pumps bytes for a broker that has too many for itself.

It knows no client, no command and no limit. What it accepts it hands to the broker, and what
the broker has joined it pumps. It ends with the broker, whatever ended that; signals that
are meant for the broker it does not hear. It must never outlive the channel.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import Any

import gevent
from gevent.event import Event

from .channel import Accepted, Channel, Closed, Ended, Join, Level, Lost, Open, Ready, Shut
from .proxies import Acceptor
from .pump import Pump

log = logging.getLogger("brokerd")

DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Worker:
    """Does what the channel says until that ends."""

    def __init__(self, loop: Any, sock: socket.socket) -> None:
        self._loop = loop
        self._pump = Pump(loop)
        self._acceptors: dict[int, list[Acceptor]] = {}
        self.ended = Event()
        self._channel = Channel(loop, sock, self._received, self.ended.set)
        self._channel.send(Ready(0))

    def _received(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, Join):
            self._join(message.number, [_connection(fd) for fd in fds])
        elif isinstance(message, Open):
            self._open(message.number, [_connection(fd) for fd in fds])
        elif isinstance(message, Shut):
            self._shut(message.number)
        elif isinstance(message, Level):
            logging.getLogger().setLevel(message.level)

    def _join(self, number: int, socks: list[socket.socket]) -> None:
        if len(socks) == 2:
            one, other = socks
            self._pump.join(one, other, lambda: self._channel.send(Ended(number)))
            return
        # They were dropped for want of numbers: those of idle pipes are the first to go.
        log.error("no descriptors for a relay")
        self._pump.pipes.close()
        self._channel.send(Ended(number))

    def _open(self, number: int, socks: list[socket.socket]) -> None:
        if not socks:
            log.error("no descriptor for a proxy socket")
            self._channel.send(Lost(number))
            return
        self._acceptors[number] = [
            Acceptor(
                self._loop,
                sock,
                lambda conn, peer: self._channel.send(Accepted(number, *peer), [conn.detach()]),
            )
            for sock in socks
        ]

    def _shut(self, number: int) -> None:
        for acceptor in self._acceptors.pop(number, []):
            acceptor.close()
        self._channel.send(Closed(number))

    def close(self) -> None:
        """Close everything; connections are reset."""
        for acceptors in self._acceptors.values():
            for acceptor in acceptors:
                acceptor.close()
        self._pump.close()
        self._channel.close()


def _connection(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def main() -> None:
    """Entry of the process that crew.py starts: number, channel and log level come as words."""
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    _, name, channel, level = sys.argv
    logging.basicConfig(
        stream=sys.stderr,
        level=level,
        format=f"%(asctime)s brokerd worker {name} %(levelname)s %(message)s",
    )
    worker = Worker(gevent.get_hub().loop, socket.socket(fileno=int(channel)))
    worker.ended.wait()
    worker.close()
