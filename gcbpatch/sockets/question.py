"""One question to a host that nobody knows: are you a broker, with a proxy at this port?

A datagram to the predefined port, and one to each port that other brokers are configured
with, from a socket for each. No agent has a part in it, and no token: a token is for those
brokers only that it was given for. It must never wait, nor say anything twice.
"""

from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from gevent import get_hub

from ..addresses import Address
from ..errors import RemoteProtocolError, Status
from ..wire.codec import MAX_DATAGRAM, Kind, build, parse, status_of
from ..wire.messages import TCP, Ask, Command

LATE_SECONDS = 2.0
"""How long an answer is still good for something: the next connect need not ask."""

Told = Callable[[Status | None, int], None]
"""The answer and the port that it came from; None if nobody is there to ask, or to answer."""


class Question:
    """Asked when it is made; raises OSError if it cannot be sent. ``told`` is called once."""

    def __init__(self, target: Address, ports: Iterable[int], told: Told) -> None:
        self._told = told
        self._best: tuple[Status | None, int] = None, 0
        self._open: dict[int, tuple[_socket.socket, Any, int]] = {}
        self._late: Any = None
        try:
            for port in ports:
                self._ask(target, port)
        except OSError:
            self.close()
            raise
        self._late = get_hub().loop.timer(LATE_SECONDS, ref=False)
        self._late.start(self._finish)

    def _ask(self, target: Address, port: int) -> None:
        transaction = int.from_bytes(os.urandom(8), "big")
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        sock = _socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect((target[0], port))
            sock.send(build(Kind.REQUEST, Command.ASK, transaction, Ask(TCP, target[1])))
        except OSError:
            sock.close()
            raise
        watcher = get_hub().loop.io(sock.fileno(), 1, ref=False)
        self._open[port] = sock, watcher, transaction
        watcher.start(self._readable, port)

    def _readable(self, port: int) -> None:
        sock, _, transaction = self._open[port]
        try:
            frame = parse(sock.recv(MAX_DATAGRAM + 1))
            if frame.kind is not Kind.REPLY or frame.transaction != transaction:
                return
            said: Status | None = status_of(frame)
        except BlockingIOError:
            return
        except RemoteProtocolError:
            return  # not an answer to us, whatever it is
        except OSError:
            said = None  # refused: nobody is at that port
        self._settle(port, said)

    def _settle(self, port: int, said: Status | None) -> None:
        """A yes is the last word; a broker without that proxy is a better answer than none."""
        self._drop(port)
        if said is Status.SUCCESS or (said is Status.UNKNOWN and self._best[0] is None):
            self._best = said, port
        if said is Status.SUCCESS or not self._open:
            self._finish()

    def _finish(self) -> None:
        told, self._told = self._told, _nothing
        self.close()
        told(*self._best)

    def _drop(self, port: int) -> None:
        sock, watcher, _ = self._open.pop(port)
        watcher.stop()
        watcher.close()
        sock.close()

    def close(self) -> None:
        """Listen no more."""
        for port in list(self._open):
            self._drop(port)
        if self._late is not None:
            self._late.stop()
            self._late.close()
            self._late = None


def _nothing(said: Status | None, port: int) -> None:
    """It has been told."""
