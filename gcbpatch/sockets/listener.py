"""A listening socket with a public identity: registration, its queue, and accept.

Brokered connections come through a kernel queue that forked children share; a nudge makes
the listening socket readable for each. This room must never lose or reorder what is in the
queue, nor show the program a nudge.
"""

from __future__ import annotations

import _socket
import os
import socket
import time

from ..addresses import Address, is_wildcard
from ..agent import door
from ..wire.messages import Endpoint
from .link import AgentGone, Link
from .table import Names, Table, close_if, cookie_of, inode_of

FIND_INTERVAL = 1.0
"""Seconds between questions about a registration that was not there in time."""

_MAPPED_NUDGE = "::ffff:" + door.NUDGE_HOST


class Listener:
    """One listening (or bound) socket of the program, shared by its dups and forks."""

    def __init__(self, link: Link, bound: Address) -> None:
        self.bound = bound
        self.public: Address | None = None
        self._link = link
        self._id = os.urandom(16)
        self._listens = False
        self._asked = 0.0
        self._queue: _socket.socket | None = None
        self._queue_inode = 0

    def register(self, sock: _socket.socket, listens: bool) -> None:
        """Get an identity. Raises OSError when the broker or gateway refuses one.

        Without an agent, or with a broker that does not answer, the socket stays what the
        kernel made of it.
        """
        ours, agents = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        message = door.Listen(
            self._id, cookie_of(sock), Endpoint.of(self.bound), self.bound[1], listens
        )
        try:
            answer = self._link.ask(message, (agents.fileno(),))
        except AgentGone as error:
            ours.close()
            self._link.warn_once("no agent: %s", error)
            return
        finally:
            agents.close()
        self._queue, self._listens = ours, listens
        self._queue_inode = inode_of(ours.fileno())
        self._take(answer)

    def listened(self) -> None:
        """The socket that was registered when it was only bound listens now."""
        if self._listens or self._queue is None:
            return
        self._listens = True
        self._ask(door.Ready(self._id))

    def forget(self) -> None:
        """The socket connects: it was no listener, only bound and asked for its name."""
        if self._queue is None or self._listens:
            return
        try:
            self._link.ask(door.Forget(self._id))
        except AgentGone:
            self._link.warn_once("no agent to forget %s", self.bound)
        self.release()

    def identity(self) -> Address | None:
        """Return the public address; asks again, now and then, while there is none."""
        now = time.monotonic()
        if self.public is None and self._queue and now - self._asked >= FIND_INTERVAL:
            self._ask(door.Find(self._id))
        return self.public

    def _ask(self, message: door.DoorMessage) -> None:
        try:
            self._take(self._link.ask(message))
        except AgentGone as error:
            self._link.warn_once("no agent: %s", error)

    def _take(self, answer: door.Listening) -> None:
        self._asked = time.monotonic()
        if answer.public is not None:
            self.public = answer.public.address
        elif answer.error:
            self.release()
            raise OSError(answer.error, f"{os.strerror(answer.error)} ({answer.reason})")
        else:
            self._link.warn_once("not registered: %s", answer.reason)

    def accepted(self, fd: int, address: Address, table: Table) -> tuple[int, Address] | None:
        """Return what accept() should return for a connection of the kernel's.

        None when it was a nudge for a connection that a sibling process has taken.
        """
        if address[0] in (door.NUDGE_HOST, _MAPPED_NUDGE) and self._queue is not None:
            os.close(fd)
            got = door.pop(self._queue)
            if got is None:
                return None
            fd, address = got[0], got[1].peer.address
            self._name(fd, address, table)
        elif self.public is not None and not self._keeps_names:
            self._name(fd, None, table)
        return fd, address

    @property
    def _keeps_names(self) -> bool:
        return self._link.config.identity == "local"

    def _name(self, fd: int, peer: Address | None, table: Table) -> None:
        os.set_blocking(fd, False)
        sock = _socket.socket(fileno=fd)
        try:
            table.put(sock, Names(self._local_name(sock), peer))
        finally:
            sock.detach()

    def _local_name(self, sock: _socket.socket) -> Address | None:
        """What getsockname() of an accepted socket says: the listener's own name."""
        if not self._keeps_names:
            return self.public
        host, port = self.bound
        return (sock.getsockname()[0] if is_wildcard(host) else host), port

    def release(self) -> None:
        """The socket is gone from this process: give up our end of its queue."""
        if self._queue is not None:
            close_if(self._queue, self._queue_inode)
            self._queue = None
