"""Control over TCP: connections on which the frames go that datagrams would carry.

For clients that no datagrams reach. A connection whose first frame is HELLO becomes a line;
requests are answered on it, and CALLs go down it. A line on which nobody has proved to be a
client, or nothing is said any more, is closed.

It must never wait for a slow reader, say a frame twice on one line, or keep strangers while
clients find no room.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from gcbpatch.addresses import Address, format_address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.codec import Frame, Kind, build, parse, status_of
from gcbpatch.wire.messages import Command
from gcbpatch.wire.session import FrameReader

log = logging.getLogger("brokerd")

MOST_LINES = 8192
READS = 32
"""Reads from one line per wake-up, so that it does not starve the others."""
STRANGER_PATIENCE = 10.0
"""Seconds from HELLO to the first request that is granted."""
IDLE_PATIENCE = 100.0
"""Seconds without a whole frame after which a client is gone: four of its longest pauses."""

_READ = 1
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class Line:
    """One connection. ``proved`` is set when a request on it beyond HELLO has been granted."""

    __slots__ = ("_lines", "_sock", "deadline", "peer", "proved", "reader", "via", "watcher")

    def __init__(self, sock: socket.socket, peer: Address, watcher: Any, lines: Lines) -> None:
        self._sock = sock
        self._lines = lines
        self.peer = peer
        self.via: str = sock.getsockname()[0]
        self.watcher = watcher
        self.reader = FrameReader()
        self.proved = False
        self.deadline = 0.0

    def send(self, data: bytes) -> None:
        """Say a frame. A client that does not read what it is told loses its line."""
        if not self.is_open:
            return
        try:
            whole = self._sock.send(data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self._lines.end(self)

    def read(self) -> Frame | None:
        """Return the next frame; None if it is not whole yet.

        Raises BlockingIOError, EOFError at the end, other OSErrors and RemoteProtocolError.
        """
        data = self._sock.recv(self.reader.wants)
        if not data:
            raise EOFError
        return self.reader.feed(data)

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self._sock.fileno() >= 0

    def close(self) -> None:
        """Close it; whoever holds it finds it closed."""
        if self.is_open:
            self.watcher.stop()
            self.watcher.close()
            self._sock.close()


Receive = Callable[[Frame, Line, float], bytes | None]
"""Returns the answer to a frame, None if there is none; may raise RemoteProtocolError."""

Complain = Callable[[Address, RemoteProtocolError], None]


class Lines:
    """All lines, in the order in which they were last heard of."""

    def __init__(
        self, loop: Any, receive: Receive, complain: Complain, most: int = MOST_LINES
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._complain = complain
        self._most = most
        self._strangers: dict[Line, None] = {}
        self._clients: dict[Line, None] = {}

    def __len__(self) -> int:
        return len(self._strangers) + len(self._clients)

    def adopt(self, sock: socket.socket, peer: Address, first: Frame, now: float) -> None:
        """Make a line of a connection whose first frame was read already, and answer that."""
        if len(self) >= self._most and not self._make_room():
            log.info("no line for %s: clients have them all", format_address(peer))
            sock.close()
            return
        for option in _OPTIONS:
            sock.setsockopt(*option)
        line = Line(sock, peer, self._loop.io(sock.fileno(), _READ), self)
        self._strangers[line] = None
        line.deadline = now + STRANGER_PATIENCE
        line.watcher.start(self._readable, line)
        self._handle(line, first, now)

    def _make_room(self) -> bool:
        """Close the line on which nobody has proved anything for the longest time."""
        stranger = next(iter(self._strangers), None)
        if stranger is not None:
            self.end(stranger)
        return stranger is not None

    def _readable(self, line: Line) -> None:
        now = time.monotonic()
        try:
            for _ in range(READS):
                frame = line.read()
                if frame is not None:
                    self._handle(line, frame, now)
                if not line.is_open:
                    return
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self.end(line)
        except RemoteProtocolError as error:
            self._complain(line.peer, error)
            self.end(line)

    def _handle(self, line: Line, frame: Frame, now: float) -> None:
        try:
            reply = self._receive(frame, line, now)
        except RemoteProtocolError as error:
            self._complain(line.peer, error)
            line.send(build(Kind.REPLY, frame.command, frame.transaction, status=error.status))
            self.end(line)
            return
        if reply is not None:
            line.send(reply)
        if line.is_open:
            self._heard(line, frame, reply, now)

    def _heard(self, line: Line, frame: Frame, reply: bytes | None, now: float) -> None:
        """A client has its patience anew; a stranger has one, in which to become a client."""
        granted = reply is not None and status_of(parse(reply)) is Status.SUCCESS
        if granted and frame.command != Command.HELLO:
            line.proved = True
        if line.proved:
            self._strangers.pop(line, None)
            self._clients.pop(line, None)
            self._clients[line] = None
            line.deadline = now + IDLE_PATIENCE

    def tick(self, now: float) -> None:
        """Close those that have been silent for too long."""
        for lines in (self._strangers, self._clients):
            while lines and (line := next(iter(lines))).deadline <= now:
                self.end(line)

    def end(self, line: Line) -> None:
        """Close one."""
        self._strangers.pop(line, None)
        self._clients.pop(line, None)
        line.close()

    def close(self) -> None:
        """Close all."""
        for line in [*self._strangers, *self._clients]:
            self.end(line)
