"""The program's listeners as the agent knows them: delivery by queue and nudge, and their end.

A brokered connection goes into the listener's queue (an AF_UNIX pair, shared by forked
children) and a connect from a reserved loopback address makes the kernel report the
program's own listening socket readable: no poller of the program is ever fooled. This room
must never hold a descriptor of the listening socket: that would keep it alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..addresses import Address, is_wildcard
from . import sockdiag, streams
from .door import NUDGE_HOST, Arrival, Endpoint, Listen, push


@dataclass(slots=True)
class Listener:
    """One listening socket of a program."""

    listener: bytes
    cookie: int
    bound: Address
    wished: int
    queue: socket.socket
    nonce: bytes
    listens: bool
    proxy: Address | None = None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""

    @property
    def nudge_target(self) -> Address:
        """Where a connect reaches the listening socket from this host."""
        return ("127.0.0.1" if is_wildcard(self.bound[0]) else self.bound[0]), self.bound[1]


class Listeners:
    """All listeners of the tree; ``on_end`` is told of each that the kernel has ended."""

    def __init__(self, on_end: Callable[[Listener], None]) -> None:
        self._by_id: dict[bytes, Listener] = {}
        self._on_end = on_end
        self._nudges: set[asyncio.Task[None]] = set()
        self._events = sockdiag.open_events()
        asyncio.get_running_loop().add_reader(self._events, self._read_events)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Listener]:
        return iter(list(self._by_id.values()))

    def get(self, listener: bytes) -> Listener | None:
        """Return the listener of that id, if it lives."""
        return self._by_id.get(listener)

    def by_proxy(self, proxy: Address) -> Listener | None:
        """Return the listener whose identity is ``proxy``."""
        return next((one for one in self if one.proxy == proxy), None)

    def add(self, asked: Listen, queue_fd: int) -> Listener:
        """Enter a listener, or take over the new queue of one that is known."""
        queue = socket.socket(fileno=queue_fd)
        queue.setblocking(False)
        known = self._by_id.get(asked.listener)
        if known is not None:
            known.queue.close()
            known.queue, known.listens = queue, asked.listens
            return known
        one = Listener(
            asked.listener,
            asked.cookie,
            asked.bound.address,
            asked.wished,
            queue,
            os.urandom(8),
            asked.listens,
        )
        if asked.proxy is not None:
            one.proxy, one.claim = asked.proxy.address, asked.claim
        self._by_id[one.listener] = one
        return one

    def deliver(self, one: Listener, sock: socket.socket, peer: Address) -> bool:
        """Put a connection into the queue and nudge; False (and RST) if the queue is full."""
        nudge = socket.socket()
        nudge.setblocking(False)
        try:
            nudge.bind((NUDGE_HOST, 0))
            push(one.queue, Arrival(nudge.getsockname()[1], Endpoint.of(peer)), sock.fileno())
        except OSError:
            nudge.close()
            streams.reset(sock)
            return False
        sock.close()
        task = asyncio.ensure_future(_nudge(nudge, one.nudge_target))
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)
        return True

    def check(self) -> None:
        """End every listener that the kernel does not list as listening any more."""
        if not self._by_id:
            return
        living = sockdiag.listening()
        for one in self:
            if one.listens and one.cookie not in living:
                self._end(one)

    def _read_events(self) -> None:
        try:
            while True:
                self._end_cookies(set(sockdiag.ended(self._events.recv(65536))))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.check()

    def _end_cookies(self, cookies: set[int]) -> None:
        for one in self:
            if one.cookie in cookies:
                self._end(one)

    def _end(self, one: Listener) -> None:
        del self._by_id[one.listener]
        one.queue.close()
        self._on_end(one)


async def _nudge(sock: socket.socket, target: Address) -> None:
    """Connect, so that the listener becomes readable; a full backlog delays, an end ends it."""
    with contextlib.closing(sock), contextlib.suppress(OSError):
        # An OSError means that the listener is gone: its queue then closes what is in it.
        await asyncio.get_running_loop().sock_connect(sock, target)
