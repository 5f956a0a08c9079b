"""Connections that wait to become halves: dialled by listeners' agents before anybody calls.

PARK makes a connection wait and keeps it waiting, JOIN makes it the half that its rendezvous
waits for. So a listener that is called need not dial first. What proves anything is JOIN as
ever: to have parked gives no right to any connection.

It must never keep one that has not been asked to be kept for PATIENCE, more of one client than
MOST_OF_ONE, or any beyond the limits; nor take a byte more than the frames that it reads.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from gcbpatch.addresses import Address, format_address
from gcbpatch.errors import GcbError, RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import Frame, Kind
from gcbpatch.wire.messages import Command, Connect, Park, ParkReply
from gcbpatch.wire.session import FrameReader

from .introductions import Foretold, foretold
from .limits import Held, Limits
from .registry import Refusal
from .relay import say_and_close

log = logging.getLogger("brokerd")

PATIENCE = 75
"""Seconds without another PARK: three of an agent's pauses."""
MOST_OF_ONE = 8
"""Of one client; with one more the one is closed that was silent longest."""

_READ = 1
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class Parked:
    """One connection that waits."""

    __slots__ = ("asked", "deadline", "is_promised", "key", "peer", "reader", "sock", "watcher")

    def __init__(self, sock: socket.socket, peer: Address, asked: Park, key: Key | None) -> None:
        self.sock = sock
        self.peer = peer
        self.asked = asked
        self.key = key
        self.deadline = 0.0
        self.is_promised = False
        self.reader = FrameReader()
        self.watcher: Any = None

    def read(self) -> Frame | None:
        """Return the next frame; None if it is not whole yet.

        Raises BlockingIOError, EOFError at the end, other OSErrors and RemoteProtocolError.
        """
        data = self.sock.recv(self.reader.wants)
        if not data:
            raise EOFError
        return self.reader.feed(data)


Granted = Callable[[Frame, Address, str, float], tuple[Park, Key | None]]
"""Returns what a PARK asks for and by which token; raises RemoteProtocolError and Refusal."""

Leave = Callable[[socket.socket, Address, Frame], None]
"""Takes a connection over on which another frame than PARK has come."""


Complain = Callable[[Address, GcbError], None]


class Parking:
    """All that wait, in the order in which they were last heard of."""

    def __init__(self, loop: Any, limits: Limits, granted: Granted, complain: Complain) -> None:
        self._loop = loop
        self._limits = limits
        self._granted = granted
        self._complain = complain
        self._all: dict[Parked, None] = {}
        self._of: dict[bytes, list[Parked]] = {}
        self.is_full = False
        """Whether newcomers are refused: the broker is about to end."""
        self.leave: Leave = lambda sock, peer, frame: sock.close()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Parked]:
        return iter(self._all)

    def enter(self, sock: socket.socket, peer: Address, frame: Frame, now: float) -> None:
        """Take a connection whose first frame is PARK; it is ours from now on."""
        try:
            asked, key = self._granted(frame, peer, sock.getsockname()[0], now)
            if self.is_full:
                raise Refusal(Status.NO_RESOURCES, "no connection is parked any more")
            self._make_room(asked.client)
            self._limits.take(Held.PARKED, key)
        except (RemoteProtocolError, Refusal) as error:
            self._refuse(sock, peer, frame, error)
            return
        for option in _OPTIONS:
            sock.setsockopt(*option)
        parked = Parked(sock, peer, asked, key)
        parked.watcher = self._loop.io(sock.fileno(), _READ)
        parked.watcher.start(self.look, parked)
        self._of.setdefault(asked.client, []).append(parked)
        log.info("a connection of %s is parked", format_address(peer))
        self._keep(parked, frame, now)

    def _make_room(self, client: bytes) -> None:
        its = self._of.get(client, [])
        if len(its) >= MOST_OF_ONE:
            self._end(min(its, key=lambda one: one.deadline))

    def _keep(self, parked: Parked, frame: Frame, now: float) -> None:
        """Say that it is kept, for another while."""
        self._all.pop(parked, None)
        self._all[parked] = None
        parked.deadline = now + PATIENCE
        reply = auth.reply_to(frame, parked.key, Status.SUCCESS, ParkReply(PATIENCE))
        try:
            whole = parked.sock.send(reply) == len(reply)
        except OSError:
            whole = False
        if not whole:
            self._end(parked)

    def look(self, parked: Parked) -> None:
        """Read what has come on one, up to a whole frame."""
        try:
            while (frame := parked.read()) is None:
                pass
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._end(parked)
            return
        except RemoteProtocolError as error:
            self._complain(parked.peer, error)
            self._end(parked)
            return
        self._heard(parked, frame, time.monotonic())

    def _heard(self, parked: Parked, frame: Frame, now: float) -> None:
        if frame.kind is not Kind.REQUEST or frame.command != Command.PARK:
            self._release(parked)
            self.leave(parked.sock, parked.peer, frame)
            return
        try:
            asked, key = self._granted(frame, parked.peer, parked.sock.getsockname()[0], now)
            if (asked.client, key) != (parked.asked.client, parked.key):
                raise Refusal(Status.NOT_AUTHORIZED, "PARK of another client's connection")
            parked.asked = asked
        except (RemoteProtocolError, Refusal) as error:
            self._release(parked)
            self._refuse(parked.sock, parked.peer, frame, error)
            return
        self._keep(parked, frame, now)

    def _refuse(
        self, sock: socket.socket, peer: Address, frame: Frame, error: RemoteProtocolError | Refusal
    ) -> None:
        self._complain(peer, error)
        say_and_close(sock, auth.reply_to(frame, None, error.status))

    def foretell(self, client: bytes, seen: str, host: str, asked: Connect) -> Foretold:
        """Promise a connector at ``host`` one that waits for a client that is seen at ``seen``.

        It is for nobody else then. Nothing is foretold if there is none, or they cannot punch.
        """
        for parked in reversed(self._of.get(client, [])):
            if not parked.is_promised and parked.peer[0] == seen:
                told = foretold(host, asked, (parked.sock, parked.asked))
                parked.is_promised = bool(told.half)
                return told
        return Foretold()

    def tick(self, now: float) -> None:
        """Close those that have been silent for too long."""
        while self._all and (parked := next(iter(self._all))).deadline <= now:
            self._end(parked)

    def _end(self, parked: Parked) -> None:
        self._release(parked)
        parked.sock.close()

    def _release(self, parked: Parked) -> None:
        """Let go of a connection, with all that is known of it."""
        parked.watcher.stop()
        parked.watcher.close()
        self._all.pop(parked, None)
        its = self._of[parked.asked.client]
        its.remove(parked)
        if not its:
            del self._of[parked.asked.client]
        self._limits.give(Held.PARKED, parked.key)

    def close(self) -> None:
        """Close all."""
        for parked in list(self._all):
            self._end(parked)
