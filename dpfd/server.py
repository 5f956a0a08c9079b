"""Command sessions: TCP connections on the private side, one frame at a time.

Bounded in number, in idle time and in the time that half a frame may take. It must never
look into a frame: dispatch does; nor read a byte more than the frame needs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent import socket
from gevent.server import StreamServer

from gcbpatch.addresses import Address
from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.codec import Frame, Kind, build
from gcbpatch.wire.session import FrameReader

from . import faults
from .dispatch import Outcome, Peer

log = logging.getLogger("dpfd.server")

_REMEMBERED = 4096
_PARTING_READS, _PARTING_READ = 16, 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Sessions in all and from one host; seconds that one may idle, and half a frame may take."""

    sessions: int = 1024
    sessions_per_host: int = 64
    idle: float = 120.0
    half_frame: float = 5.0


class Complaints:
    """Logs what a peer does wrong: each kind once for each host, of the last hosts."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()

    def about(self, address: Address, status: int, problem: str) -> None:
        """Log ``problem``, unless this host is known for this status.

        UNKNOWN is an answer, not an offence: whoever queries must expect it.
        """
        key = address[0], status
        if key in self._known or status == Status.UNKNOWN:
            log.debug("%s:%d: %s", *address, problem)
            return
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        log.warning("%s:%d: %s", *address, problem)


class Server:
    """Accepts and serves command sessions."""

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Frame, Peer], Outcome],
        limits: Limits,
    ) -> None:
        self._answer = answer
        self._limits = limits
        self._complaints = Complaints()
        self._sessions: OrderedDict[int, socket.socket] = OrderedDict()
        self._per_host: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._stream = StreamServer(listener, self._serve)

    def start(self) -> None:
        """Begin to accept."""
        self._stream.start()

    def stop(self) -> None:
        """Accept no more, and end all sessions."""
        self._stream.stop(timeout=0)
        for link in list(self._sessions.values()):
            link.close()

    def _serve(self, link: socket.socket, address: Address) -> None:
        host = address[0]
        if self._per_host[host] >= self._limits.sessions_per_host:
            problem = f"{self._limits.sessions_per_host} sessions are allowed to a host"
            self._complaints.about(address, -1, problem)
            link.close()
            return
        self._make_room()
        number = next(self._numbers)
        self._sessions[number] = link
        self._per_host[host] += 1
        try:
            self._converse(link, address, number)
        except OSError as error:
            log.debug("%s:%d: session ended: %s", *address, error)
        finally:
            self._forget(number, host)
            link.close()

    def _make_room(self) -> None:
        """End the session that has been silent for longest, if there are too many.

        Ending one costs its client a new connection; refusing would let idlers keep all out.
        """
        if len(self._sessions) >= self._limits.sessions:
            _, link = self._sessions.popitem(last=False)
            with contextlib.suppress(OSError):  # its client may have gone already
                link.shutdown(socket.SHUT_RDWR)

    def _forget(self, number: int, host: str) -> None:
        self._sessions.pop(number, None)
        self._per_host[host] -= 1
        if not self._per_host[host]:
            del self._per_host[host]

    def _converse(self, link: socket.socket, address: Address, number: int) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, peer = FrameReader(), Peer(address[0])
        goes_on = True
        while goes_on:
            try:
                frame = self._next_frame(link, reader)
            except RemoteProtocolError as error:
                self._complaints.about(address, error.status, str(error))
                self._send(link, build(Kind.REPLY, 0, 0, status=error.status))
                break
            if frame is None:
                return
            goes_on = self._answered(link, frame, peer, address)
            if number in self._sessions:
                self._sessions.move_to_end(number)
        self._part(link)

    def _answered(self, link: socket.socket, frame: Frame, peer: Peer, address: Address) -> bool:
        outcome = self._answer(frame, peer)
        if outcome.problem:
            self._complaints.about(address, outcome.status, outcome.problem)
        faults.point("answer: ready")
        self._send(link, outcome.reply)
        faults.point("answer: sent")
        return outcome.goes_on

    def _next_frame(self, link: socket.socket, reader: FrameReader) -> Frame | None:
        """Read one frame; None if the peer is done, or has taken too long."""
        with gevent.Timeout(self._limits.idle, False):
            data = link.recv(reader.wants)
            if not data:
                return None
            frame = reader.feed(data)
            with gevent.Timeout(self._limits.half_frame, False):
                while frame is None and (data := link.recv(reader.wants)):
                    frame = reader.feed(data)
            return frame
        return None

    def _part(self, link: socket.socket) -> None:
        """Let the last reply arrive: closing before all is read would reset the connection."""
        link.shutdown(socket.SHUT_WR)
        with gevent.Timeout(self._limits.half_frame, False):
            for _ in range(_PARTING_READS):
                if not link.recv(_PARTING_READ):
                    return

    def _send(self, link: socket.socket, data: bytes) -> None:
        with gevent.Timeout(self._limits.half_frame, TimeoutError):
            link.sendall(data)
