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

NUDGE_SECONDS = 0.5


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

    def by_bound(self, address: Address) -> Listener | None:
        """Return the listener that the kernel would let answer at an address of this host."""
        fitting = [one for one in self if one.bound[1] == address[1] and one.listens]
        exact = [one for one in fitting if one.bound[0] == address[0]]
        wildcard = [one for one in fitting if is_wildcard(one.bound[0])]
        return next(iter(exact + wildcard), None)

    def add(self, asked: Listen, queue_fd: int) -> Listener:
        """Enter a listener, or take over the new queue of one that is known."""
        queue = socket.socket(fileno=queue_fd)
        queue.setblocking(False)
        known = self._by_id.get(asked.listener)
        if known is not None:
            self._drop_queue(known)
            known.queue, known.listens = queue, asked.listens
            self._watch_queue(known)
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
        self._watch_queue(one)
        return one

    def _watch_queue(self, one: Listener) -> None:
        """Nothing ever comes back on a queue but its end: then no process has it any more."""
        asyncio.get_running_loop().add_reader(one.queue, self._queue_ended, one)

    def _queue_ended(self, one: Listener) -> None:
        if one.queue.recv(1, socket.MSG_DONTWAIT) == b"":
            self._end(one)

    def _drop_queue(self, one: Listener) -> None:
        asyncio.get_running_loop().remove_reader(one.queue)
        one.queue.close()

    def forget(self, listener: bytes) -> None:
        """End a listener because the program says that it is none."""
        one = self._by_id.get(listener)
        if one is not None:
            self._end(one)

    def deliver(self, one: Listener, sock: socket.socket, peer: Address) -> bool:
        """Put a connection into the queue and nudge; False (and RST) if the queue is full."""
        nudge = _nudge_socket()
        try:
            push(one.queue, Arrival(nudge.getsockname()[1], Endpoint.of(peer)), sock.fileno())
        except OSError:
            nudge.close()
            streams.reset(sock)
            return False
        sock.close()
        task = asyncio.ensure_future(self._nudge(nudge, one))
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
        if self._by_id.pop(one.listener, None) is not None:
            self._drop_queue(one)
            self._on_end(one)

    async def _nudge(self, sock: socket.socket, one: Listener) -> None:
        """Make the listener readable, and keep at it until the nudge was accepted.

        A full backlog drops SYNs, and the kernel sends them again ever more seldom: a fresh
        nudge is quicker. One too many does no harm.
        """
        while self._by_id.get(one.listener) is one:
            with contextlib.closing(sock):
                if await _accepted(sock, one.nudge_target):
                    return
            sock = _nudge_socket()
        sock.close()


def _nudge_socket() -> socket.socket:
    sock = socket.socket()
    try:
        sock.setblocking(False)
        sock.bind((NUDGE_HOST, 0))
    except OSError:
        sock.close()
        raise
    return sock


async def _accepted(sock: socket.socket, target: Address) -> bool:
    """Connect and wait until the program has closed the nudge; False if the backlog is full."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(NUDGE_SECONDS):
            await loop.sock_connect(sock, target)
    except TimeoutError:
        return False
    except OSError:
        return True  # the listener is gone; its queue's end says so, too
    with contextlib.suppress(OSError):
        await loop.sock_recv(sock, 1)
    return True
