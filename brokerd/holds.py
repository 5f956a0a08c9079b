"""Connections that wait for a moment, because who makes them may choose another way.

A connector that does not know us connects to a proxy address and asks at the same time whether
we are a broker. When it hears yes it gives that connection up, and has its agent connect. Of
the question, whose source nobody has proved, only a bounded count remains that expires soon:
as many connections from that host to that port are held, until they end (they are gone
then, and nobody is called), until they speak, or until time is out (they are ordinary then).

It must never read from a connection, nor hold one that nobody has asked for.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

EXPECT_SECONDS = 3.0
"""From a question to its connection: a lost SYN is sent again after one second."""
MOST_EXPECTED = 4096
MOST_OF_ONE = 16
MOST_HELD = 1024
LOST_SECONDS = 0.25
"""Beyond four round trips: TCP has repeated a lost FIN by then."""
MOST_SECONDS = 2.0
_RTT_AT = 68
_INFO_SIZE = 72

Name = tuple[str, int]
"""A host that has asked, and the proxy port that it asked for."""


class Expected:
    """How many connections are to be held, of which host and to which port."""

    def __init__(self) -> None:
        self._counts: dict[Name, int] = {}
        self._queue: deque[tuple[float, Name]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, name: Name, now: float) -> None:
        """One connection more is to be held, if it comes soon; none for who asks too much."""
        self._expire(now)
        if len(self._queue) < MOST_EXPECTED and self._counts.get(name, 0) < MOST_OF_ONE:
            self._counts[name] = self._counts.get(name, 0) + 1
            self._queue.append((now + EXPECT_SECONDS, name))

    def take(self, name: Name, now: float) -> bool:
        """A connection has come; return whether it is one to be held."""
        self._expire(now)
        if name not in self._counts:
            return False
        self._lower(name)
        self._queue.remove(next(entry for entry in self._queue if entry[1] == name))
        return True

    def _expire(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            self._lower(self._queue.popleft()[1])

    def _lower(self, name: Name) -> None:
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]


class Holds:
    """Connections that are held."""

    def __init__(self, loop: Any) -> None:
        self.expected = Expected()
        self._loop = loop
        self._held: dict[int, tuple[socket.socket, Any, Any]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sock: socket.socket, go_on: Callable[[], None]) -> None:
        """Hold a connection; ``go_on`` is called when it is to be treated as an ordinary one."""
        if len(self._held) >= MOST_HELD:
            go_on()
            return
        watcher = self._loop.io(sock.fileno(), 1)
        timer = self._loop.timer(seconds_for(sock))
        self._held[sock.fileno()] = sock, watcher, timer
        watcher.start(self._stirs, sock, go_on)
        timer.start(self._let_go, sock, go_on)

    def _stirs(self, sock: socket.socket, go_on: Callable[[], None]) -> None:
        try:
            speaks = sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return
        except OSError:
            speaks = False
        if speaks:
            self._let_go(sock, go_on)
        else:
            self._release(sock)
            sock.close()

    def _let_go(self, sock: socket.socket, go_on: Callable[[], None]) -> None:
        self._release(sock)
        go_on()

    def _release(self, sock: socket.socket) -> None:
        _, *watchers = self._held.pop(sock.fileno())
        for watcher in watchers:
            watcher.stop()
            watcher.close()

    def close(self) -> None:
        """Let all end."""
        for sock, _, _ in list(self._held.values()):
            self._release(sock)
            sock.close()


def seconds_for(sock: socket.socket) -> float:
    """Return how long a connection is held: for what a yes and what follows it take."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    round_trip = struct.unpack_from("=I", info, _RTT_AT)[0] / 1e6
    return float(min(4 * round_trip + LOST_SECONDS, MOST_SECONDS))
