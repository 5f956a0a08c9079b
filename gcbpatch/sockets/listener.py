"""A listening socket with a public identity: registration, its queue, and accept.

Brokered connections come through a kernel queue that forked children share; a nudge makes
the listening socket readable for each. This room must never lose or reorder what is in the
queue, nor show the program a nudge.
"""

from __future__ import annotations

import _socket
import os
import posix
import socket
import time
from typing import Any

from ..addresses import V4, Address, is_wildcard, shown
from ..tree import NUDGE_HOST, NUDGE_HOST_6, NUDGE_SEGMENT
from .intake import Intake
from .later import AgentGone, door
from .link import Link
from .options import Options, inherited
from .table import Names, cookie_of
from .target import family_of

FIND_INTERVAL = 1.0
"""Seconds between questions about a registration that was not there in time."""

_NUDGES = (NUDGE_HOST, "::ffff:" + NUDGE_HOST)
_MARKS = (NUDGE_SEGMENT, NUDGE_SEGMENT - 12)
"""What the kernel makes of the mark, with TCP's timestamps and without."""


def is_nudge(fd: int, address: Any) -> bool:
    """Return whether a connection from there only says that the queue is not empty."""
    if not isinstance(address, tuple):
        return False
    return address[0] in _NUDGES or (address[0] == NUDGE_HOST_6 and _is_marked(fd))


def _is_marked(fd: int) -> bool:
    sock = _socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fd)
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) in _MARKS
    finally:
        sock.detach()


Known = tuple[Names, Options]
"""The names that an accepted socket answers with, and options that it is to have."""


def _intake_of(fds: list[int]) -> Intake:
    return Intake.of(*(_socket.socket(fileno=fd) for fd in fds))


class Listener:
    """One listening (or bound) socket of the program, shared by its dups and forks."""

    def __init__(self, link: Link, sock: _socket.socket) -> None:
        self.bound: Address = _socket.socket.getsockname(sock)[:2]
        self.public: Address | None = None
        self._is_own = False
        self._link = link
        self._keeps_names = link.config.identity == "local"
        self._v6 = sock.family == socket.AF_INET6
        self._family = family_of(sock)
        self._cookie = cookie_of(sock)
        self._id = os.urandom(16)
        self._claim = b""
        self._backlog: int | None = None
        self._asked = 0.0
        self._edition = (0, 0)
        self._intake: Intake | None = None
        self._options = inherited(sock)

    # --- registration

    def register(self, backlog: int | None) -> None:
        """Get an identity; ``backlog`` is None while the socket is only bound.

        Raises OSError when the broker or gateway refuses one. Without an agent, or with a
        broker that does not answer, the socket stays what the kernel made of it.
        """
        self._backlog = backlog
        try:
            intake = Intake.new()
        except OSError as error:
            # The kernel's listen() needs no descriptor, and so it may not fail for want of one.
            self._link.warn_once("no queue: %s", error.strerror)
            return
        self._introduce(intake)

    def _introduce(self, intake: Intake) -> None:
        """Tell an agent of us; a listener whose port we share gives us its queue."""
        self._edition = self._link.edition()
        try:
            answer, fds = self._link.ask_for_descriptors(self._message(), intake.descriptors)
        except AgentGone as error:
            if intake is not self._intake:
                intake.close()
            self._link.warn_once("no agent: %s", error)
            return
        if len(fds) == 2:
            intake.close()
            self._id, intake = answer.listener, _intake_of(fds)
        else:
            door.close_all(fds)
        self._intake = intake
        self._take(answer)

    def _message(self) -> door.Listen:
        return door.Listen(
            self._id,
            self._cookie,
            door.Endpoint.of(self.bound),
            self.bound[1],
            self._backlog is not None,
            self._backlog or 0,
            door.Endpoint.of(self.public) if self.public else None,
            self._claim,
            V4 if self._family is None else self._family,
        )

    def again(self) -> None:
        """The agent is another one: tell it of us, with what is ours by claim."""
        if self._intake is not None and self._intake.is_whole():
            self._introduce(self._intake)

    @classmethod
    def adopted(cls, link: Link, sock: _socket.socket) -> Listener | None:
        """Return the listener that an inherited socket is; None if the agent knows of none.

        Raises AgentGone.
        """
        one = cls(link, sock)
        answer, fds = link.ask_for_descriptors(door.Adopt(one._cookie))
        if len(fds) != 2:
            door.close_all(fds)
            return None
        one._id, one._backlog = answer.listener, socket.SOMAXCONN
        one._intake = _intake_of(fds)
        one._take(answer)
        return one

    def listened(self, backlog: int) -> None:
        """listen() on a socket that was registered already, when bound or with a backlog."""
        if self._intake is not None:
            self._backlog = backlog
            self._ask(door.Ready(self._id, self._cookie, backlog))

    def options_changed(self, sock: _socket.socket) -> None:
        """The program has set options: accepted connections will have them."""
        self._options = inherited(sock)

    def forget(self) -> None:
        """The socket connects: it was no listener, only bound and asked for its name."""
        if self._intake is None or self._backlog is not None:
            return
        try:
            self._link.ask(door.Forget(self._id, self._cookie))
        except AgentGone:
            self._link.warn_once("no agent to forget %s", self.bound)
        self.release()

    def _ask(self, message: door.DoorMessage) -> None:
        self._edition = self._link.edition()
        try:
            answer = self._link.ask(message)
        except AgentGone as error:
            self._link.warn_once("no agent: %s", error)
            return
        if answer.listener is None:
            self.again()  # the agent that knew us has ended meanwhile
        else:
            self._take(answer)

    def _take(self, answer: door.Listening) -> None:
        self._asked = time.monotonic()
        if answer.public is not None:
            self.public, self._claim = answer.public.address, answer.claim
            self._is_own = answer.how == "own"
        elif answer.error:
            self.release()
            raise OSError(answer.error, f"{os.strerror(answer.error)} ({answer.reason})")
        elif answer.reason:  # if not, nobody has promised anything
            self._link.warn_once("not registered: %s", answer.reason)

    # --- names

    def identity(self) -> Any:
        """Return the public address; asks again, now and then, while there is none, and
        whenever the agent has said that there are others.

        None while there is none, and where names stay the kernel's.
        """
        if self._keeps_names:
            return None
        self._look()
        return self.public and self._shaped(self.public)

    @property
    def foreign(self) -> Address | None:
        """The public address, if it is not one of this host's own."""
        return None if self._is_own else self.public

    def _look(self) -> None:
        """Ask for the public address if it is not known, or may have become another one."""
        if self._intake is None:
            return
        waited = time.monotonic() - self._asked >= FIND_INTERVAL
        if self._link.edition() != self._edition or (self.public is None and waited):
            self._ask(door.Find(self._id))

    def _shaped(self, address: Address) -> Any:
        """An address as a socket of this family has it."""
        return shown(address, self._v6)

    def _local_name(self, fd: int) -> Any:
        """What getsockname() of an accepted socket says: the listener's own name."""
        if not self._keeps_names:
            return self.public and self._shaped(self.public)
        host, port = self.bound
        return self._shaped((_own_host(fd) if is_wildcard(host) else host, port))

    # --- accept

    def accepted(self, fd: int, address: Any) -> tuple[int, Any, Known | None] | None:
        """Return what accept() should return for a connection of the kernel's, and what is known.

        None when it was a nudge for a connection that a sibling process has taken.
        """
        if is_nudge(fd, address):
            posix.close(fd)
            got = self._pop()
            if got is None:
                return None
            fd, peer = got[0], self._shaped(got[1].peer.address)
            return fd, peer, (Names(self._local_name(fd), peer), self._options)
        if self.public is not None and not self._keeps_names:
            return fd, address, (Names(self._shaped(self.public), None), ())
        return fd, address, None

    def _pop(self) -> tuple[int, door.Arrival] | None:
        if self._intake is None or not self._intake.gives():
            self._fetch_intake()
        return self._intake.pop() if self._intake is not None else None

    def _fetch_intake(self) -> None:
        """The program closed descriptors that it had not opened: the agent has the queue, too."""
        self.release()
        try:
            _, fds = self._link.ask_for_descriptors(door.Adopt(self._cookie))
        except AgentGone as error:
            self._link.warn_once("no agent: %s", error)
            return
        if len(fds) == 2:
            self._intake = _intake_of(fds)
        else:
            door.close_all(fds)

    def release(self) -> None:
        """The socket is gone from this process: give up our hold on its queue."""
        if self._intake is not None:
            self._intake.close()
            self._intake = None


def _own_host(fd: int) -> str:
    sock = _socket.socket(fileno=fd)
    try:
        return str(sock.getsockname()[0])
    finally:
        sock.detach()
