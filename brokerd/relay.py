"""Rendezvous: where the two halves of a relayed connection wait for each other.

Model: a rendezvous has a random name, a secret, a limit in time, and two sides. Each side
is used once, by a JOIN that proves the secret; the connector's side of an ordinary
connection is that connection itself. With both there, both are told and handed to the
pump. If it fails (the listener is gone, a half vanished, time is out), who waits is told
the status, or reset if it is an ordinary connection; who comes late is told as well.

A wrong proof must never use up or harm a rendezvous, and nothing must ever be read from a
half here: its bytes belong to the other end.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import Frame
from gcbpatch.wire.messages import Join, JoinReply

from .introductions import introductions
from .limits import Held, Limits
from .pump import Joiner, reset
from .registry import Refusal

JOIN_LIMIT = 20.0
"""Seconds that a GCB connector and the listener have to join."""
ORDINARY_LIMIT = 10.0
"""Seconds that an ordinary connection waits for the listener; then it is reset."""

CONNECTOR, LISTENER = False, True


def say_and_close(sock: socket.socket, reply: bytes) -> None:
    """Send the last words on a connection and close it.

    What it sent behind its frame is discarded first, or closing would reset the
    connection and could destroy the reply on its way.
    """
    try:
        sock.send(reply)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)
    except OSError:
        pass  # the peer is gone, or has sent no more: either way there is nothing to tell it
    sock.close()


@dataclass(slots=True, eq=False)
class Half:
    """One side that is there. An ordinary connection has no JOIN frame to be answered."""

    sock: socket.socket
    frame: Frame | None = None
    key: Key | None = None
    asked: Join | None = None

    def welcome(self, told: JoinReply | None = None) -> bool:
        """Tell the half that it is joined; False if it cannot be told."""
        if self.frame is None:
            return True
        reply = auth.reply_to(self.frame, self.key, Status.SUCCESS, told)
        try:
            sent = self.sock.send(reply) == len(reply)
            # GO comes next and has no answer: what follows it must not wait for its ACK.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return sent
        except OSError:
            return False

    def refuse(self, status: Status) -> None:
        """Tell the half why it is not joined, and close it."""
        if self.frame is None:
            reset(self.sock)
        else:
            say_and_close(self.sock, auth.reply_to(self.frame, self.key, status))


def _nothing() -> None:
    """What there is to cancel before a CALL was made."""


@dataclass(slots=True, eq=False)
class Rendezvous:
    """``key`` is the listener's token; ``settle`` ends the CALL once the listener is there."""

    name: bytes
    secret: bytes
    key: Key | None
    deadline: float
    settle: Callable[[], None] = _nothing
    failed: Status | None = None
    used: set[bool] = field(default_factory=set)
    halves: dict[bool, Half] = field(default_factory=dict)


class Vanishing:
    """Notices halves that go away while they wait, without reading what they sent.

    An epoll of its own, since what is asked for (EPOLLRDHUP, or nothing but errors) is not
    among what the event loop can watch.
    """

    def __init__(self, loop: Any, vanished: Callable[[bytes], None]) -> None:
        self._epoll = select.epoll()
        self._vanished = vanished
        self._names: dict[int, bytes] = {}
        self._watcher = loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self.look)

    def watch(self, half: Half, name: bytes) -> None:
        """An ordinary connection may have ended its own sending; an agent has no reason to."""
        fd = half.sock.fileno()
        self._names[fd] = name
        self._epoll.register(fd, select.EPOLLRDHUP if half.frame else 0)

    def forget(self, half: Half) -> None:
        fd = half.sock.fileno()
        if self._names.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def look(self) -> None:
        """Notice who has gone."""
        for fd, _ in self._epoll.poll(0):
            name = self._names.get(fd)
            if name is not None:
                self._vanished(name)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()


def _introduced(
    connector: Half, listener: Half
) -> tuple[JoinReply | None, JoinReply | None]:
    if connector.asked is None or listener.asked is None:
        return None, None
    return introductions((connector.sock, connector.asked), (listener.sock, listener.asked))


class Relays:
    """All rendezvous that wait, and the way from there to the pump."""

    def __init__(self, loop: Any, pump: Joiner, limits: Limits) -> None:
        self._pump = pump
        self._limits = limits
        self._waiting: dict[bytes, Rendezvous] = {}
        self._vanishing = Vanishing(loop, lambda name: self.fail(name, Status.UNKNOWN))

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def expected(self) -> int:
        """How many may still become a relay: those that have failed only tell late comers so."""
        return sum(rendezvous.failed is None for rendezvous in self._waiting.values())

    def open(
        self,
        name: bytes,
        secret: bytes,
        key: Key | None,
        now: float,
        ordinary: socket.socket | None = None,
    ) -> Rendezvous:
        """Make a rendezvous, with an ordinary connection as its connector if there is one.

        Raises Refusal if there are too many; the connection is then still the caller's.
        """
        self._limits.check(Held.RELAYS, key)
        self._limits.take(Held.HALF_OPEN, key)
        limit = JOIN_LIMIT if ordinary is None else ORDINARY_LIMIT
        rendezvous = self._waiting[name] = Rendezvous(name, secret, key, now + limit)
        if ordinary is not None:
            self._arrive(rendezvous, CONNECTOR, Half(ordinary))
        return rendezvous

    def join(self, sock: socket.socket, frame: Frame, key: Key | None, asked: Join) -> None:
        """Take a connection as one half; it is ours from now on unless Refusal is raised."""
        rendezvous = self._waiting.get(asked.rendezvous)
        if rendezvous is None:
            raise Refusal(Status.UNKNOWN, "JOIN of a rendezvous that is not, or no more")
        label = "join listener" if asked.listening else "join connector"
        if not auth.check_proof(rendezvous.secret, label, rendezvous.name, asked.proof):
            raise Refusal(Status.NOT_AUTHORIZED, "JOIN with a wrong proof")
        if asked.listening in rendezvous.used:
            raise Refusal(Status.UNKNOWN, "JOIN of a side that was used already")
        self._arrive(rendezvous, asked.listening, Half(sock, frame, key, asked))

    def fail(self, name: bytes, status: Status) -> None:
        """Let a rendezvous end: who waits is told now, who comes before its limit, then."""
        rendezvous = self._waiting.get(name)
        if rendezvous is None:
            return
        rendezvous.settle()
        rendezvous.failed = rendezvous.failed or status
        for half in self._taken_halves(rendezvous):
            half.refuse(rendezvous.failed)
        if len(rendezvous.used) == 2:
            self._remove(rendezvous)

    def expire(self, now: float) -> None:
        """End those whose time is out."""
        for rendezvous in [r for r in self._waiting.values() if r.deadline <= now]:
            self.fail(rendezvous.name, Status.UNKNOWN)
            if rendezvous.name in self._waiting:
                self._remove(rendezvous)

    def close(self) -> None:
        """End all."""
        self.expire(float("inf"))
        self._vanishing.close()

    def _arrive(self, rendezvous: Rendezvous, side: bool, half: Half) -> None:
        rendezvous.used.add(side)
        rendezvous.halves[side] = half
        if rendezvous.failed is not None:
            self.fail(rendezvous.name, rendezvous.failed)
            return
        self._vanishing.watch(half, rendezvous.name)
        # Either half may have gone already, and the loop would tell us only after joining them.
        self._vanishing.look()
        if rendezvous.failed is not None:
            return
        if side is LISTENER:
            rendezvous.settle()
        if len(rendezvous.halves) == 2:
            self._splice(rendezvous)

    def _splice(self, rendezvous: Rendezvous) -> None:
        key = rendezvous.key
        try:
            self._limits.take(Held.RELAYS, key)
        except Refusal as refusal:
            self.fail(rendezvous.name, refusal.status)
            return
        self._remove(rendezvous)
        connector, listener = rendezvous.halves[CONNECTOR], rendezvous.halves[LISTENER]
        self._taken_halves(rendezvous)
        here, there = _introduced(connector, listener)
        if listener.welcome(there) and connector.welcome(here):
            self._pump.join(
                connector.sock, listener.sock, lambda: self._limits.give(Held.RELAYS, key)
            )
            return
        self._limits.give(Held.RELAYS, key)
        reset(connector.sock)
        reset(listener.sock)

    def _taken_halves(self, rendezvous: Rendezvous) -> list[Half]:
        """Take the halves out, unwatched."""
        halves = list(rendezvous.halves.values())
        rendezvous.halves.clear()
        for half in halves:
            self._vanishing.forget(half)
        return halves

    def _remove(self, rendezvous: Rendezvous) -> None:
        del self._waiting[rendezvous.name]
        self._limits.give(Held.HALF_OPEN, rendezvous.key)
