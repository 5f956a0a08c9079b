"""The program's listeners as the agent knows them, and their end.

A listener is named by its own id and found by its SO_COOKIE; its end is what the kernel says
it is. This room must never hold a descriptor of the listening socket: that would keep it
alive.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..addresses import Address, is_wildcard
from ..wire.messages import TCP
from . import sockdiag
from .delivery import Delivery
from .door import Listen


@dataclass(slots=True, eq=False)
class Listener:
    """One listening socket of a program."""

    listener: bytes
    cookie: int
    bound: Address
    wished: int
    nonce: bytes
    listens: bool
    delivery: Delivery
    proxy: Address | None = None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is known what became of the first attempt to register it."""
    protocol: int = TCP
    relay: Address | None = None

    @property
    def nudge_target(self) -> Address:
        """Where a connect reaches the listening socket from this host."""
        return self.delivery.target

    def is_there(self) -> bool:
        """Ask the kernel whether its socket still is: the event of its end takes its time.

        Raises OSError.
        """
        if not self.listens or sockdiag.listens(self.nudge_target, self.cookie):
            return True
        return self.cookie in sockdiag.listening()


def _reachable(bound: Address) -> Address:
    return ("127.0.0.1" if is_wildcard(bound[0]) else bound[0]), bound[1]


def _nothing() -> None:
    """Nobody waits for the agent to be idle."""


class Listeners:
    """All listeners of the tree; ``on_end`` is told of each that the kernel has ended."""

    def __init__(self, on_end: Callable[[Listener], None]) -> None:
        self._by_id: dict[bytes, Listener] = {}
        self._on_end = on_end
        self._ending: set[Delivery] = set()
        self.on_idle: Callable[[], None] = _nothing
        """Called when nothing is left that needs the agent."""
        self._events = sockdiag.open_events()
        asyncio.get_running_loop().add_reader(self._events, self._read_events)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def in_use(self) -> bool:
        """Whether anything here still needs the agent: a listener, or bytes to carry."""
        return bool(self._by_id or self._ending)

    def __iter__(self) -> Iterator[Listener]:
        return iter(list(self._by_id.values()))

    def get(self, listener: bytes) -> Listener | None:
        """Return the listener of that id, if it lives."""
        return self._by_id.get(listener)

    def by_proxy(self, proxy: Address) -> Listener | None:
        """Return the listener whose identity is ``proxy``."""
        return next((one for one in self if one.proxy == proxy), None)

    def by_cookie(self, cookie: int) -> Listener | None:
        """Return the listener whose socket has this SO_COOKIE."""
        return next((one for one in self if one.cookie == cookie), None)

    def by_bound(self, address: Address) -> Listener | None:
        """Return the listener that the kernel would let answer at an address of this host."""
        fitting = [one for one in self if one.bound[1] == address[1] and one.listens]
        exact = [one for one in fitting if one.bound[0] == address[0]]
        wildcard = [one for one in fitting if is_wildcard(one.bound[0])]
        return next(iter(exact + wildcard), None)

    def add(self, asked: Listen, take: socket.socket, put: socket.socket) -> Listener:
        """Enter a listener; one that is known keeps the queue that it has."""
        known = self._by_id.get(asked.listener)
        if known is not None:
            take.close()
            put.close()
            self.ready(known, asked.backlog if asked.listens else None)
            return known
        delivery = Delivery(_reachable(asked.bound.address), take, put, asked.backlog)
        one = Listener(
            asked.listener,
            asked.cookie,
            asked.bound.address,
            asked.wished,
            os.urandom(8),
            asked.listens,
            delivery,
        )
        if asked.proxy is not None:
            one.proxy, one.claim = asked.proxy.address, asked.claim
            delivery.resume()
        self._by_id[one.listener] = one
        return one

    def ready(self, one: Listener, backlog: int | None) -> None:
        """The socket listens, with this backlog; nothing new when it is None."""
        if backlog is not None:
            one.listens = True
            one.delivery.allow(backlog)

    def forget(self, listener: bytes) -> None:
        """End a listener because the program says that it is none."""
        one = self._by_id.get(listener)
        if one is not None:
            self._end(one)

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
            self._ending.add(one.delivery)
            one.delivery.close(lambda: self._ended(one.delivery))
            self._on_end(one)

    def _ended(self, delivery: Delivery) -> None:
        self._ending.discard(delivery)
        if not self.in_use:
            self.on_idle()
