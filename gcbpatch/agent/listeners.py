"""The program's listeners as the agent knows them, and their end.

A listener is named by its own id and found by its SO_COOKIE; its end is what the kernel says
it is. This room must never hold a descriptor of the listening socket: that would keep it
alive.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..addresses import ANY, V4, V6, Address, family_of, is_wildcard
from ..wire.messages import TCP
from . import sockdiag
from .delivery import Delivery
from .door import Listen


@dataclass(slots=True, eq=False)
class Listener:
    """One listening socket of a program, or several that share a port (SO_REUSEPORT)."""

    listener: bytes
    bound: Address
    wished: int
    nonce: bytes
    delivery: Delivery
    cookies: dict[int, bool] = field(default_factory=dict)
    """The sockets by SO_COOKIE, and whether each listens: some may be bound only."""
    proxy: Address | None = None
    claim: bytes = b""
    how: str = ""
    error: int = 0
    reason: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is known what became of the first attempt to register it."""
    protocol: int = TCP
    family: int = V4
    """Of the addresses that its sockets can show."""
    relay: Address | None = None

    @property
    def listens(self) -> bool:
        """Whether connections may come."""
        return any(self.cookies.values())

    @property
    def nudge_target(self) -> Address:
        """Where a connect reaches the listening socket from this host."""
        return self.delivery.target


def _reachable(bound: Address, family: int) -> Address:
    host = ("::1" if family == V6 else "127.0.0.1") if is_wildcard(bound[0]) else bound[0]
    return host, bound[1]


def _same_host(one: Listener, other: Listen) -> bool:
    """Whether their sockets can share a port: servers listen to both families on one, too."""
    if one.bound[0] == other.bound.host:
        return one.family == other.family
    both = is_wildcard(one.bound[0]) and is_wildcard(other.bound.host)
    return both and V6 not in (one.family, other.family)


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
        """Whether anything here still needs the agent: a listener, or bytes to carry.

        A socket that is only bound does not count: its process is at the door as long as it
        lives, and one that was killed while it asked may have ended before it was entered.
        """
        return bool(self._ending) or any(one.listens for one in self)

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
        return next((one for one in self if cookie in one.cookies), None)

    def by_bound(self, address: Address) -> Listener | None:
        """Return the listener that the kernel would let answer at an address of this host."""
        fitting = [one for one in self if one.bound[1] == address[1] and one.listens]
        exact = [one for one in fitting if one.bound[0] == address[0]]
        families = ANY, family_of(address[0])
        wildcard = [one for one in fitting if is_wildcard(one.bound[0]) and one.family in families]
        return next(iter(exact + wildcard), None)

    def add(self, asked: Listen, take: socket.socket, put: socket.socket) -> Listener:
        """Enter a listener; one that is known keeps the queue that it has.

        Sockets that share a port are one: the kernel chooses among them for every nudge.
        """
        known = self._by_id.get(asked.listener) or self._sharing(asked)
        if known is not None:
            take.close()
            put.close()
            self.ready(known, asked.cookie, asked.backlog if asked.listens else None)
            return known
        target = _reachable(asked.bound.address, asked.family)
        delivery = Delivery(target, take, put, asked.backlog)
        one = Listener(
            asked.listener,
            asked.bound.address,
            asked.wished,
            os.urandom(8),
            delivery,
            {asked.cookie: asked.listens},
            family=asked.family,
        )
        if asked.proxy is not None:
            one.proxy, one.claim = asked.proxy.address, asked.claim
            delivery.resume()
        self._by_id[one.listener] = one
        return one

    def _sharing(self, asked: Listen) -> Listener | None:
        """Return the listener whose sockets have the same port, if any of them lives."""
        for one in self:
            if one.bound[1] == asked.bound.port and _same_host(one, asked):
                # Its end may not have been told yet, and the new socket is another one then.
                if one.listens:
                    self._check(one, sockdiag.listening())
                return self._by_id.get(one.listener)
        return None

    def ready(self, one: Listener, cookie: int, backlog: int | None) -> None:
        """A socket is one of its; with a backlog, if it listens."""
        one.cookies.setdefault(cookie, False)
        if backlog is not None:
            one.cookies[cookie] = True
            one.delivery.allow(backlog)

    def forget(self, listener: bytes, cookie: int) -> None:
        """End a listener because the program says that its socket is none."""
        one = self._by_id.get(listener)
        if one is not None:
            self._leave(one, {cookie})

    def check(self) -> None:
        """End every listener that the kernel does not list as listening any more."""
        if not self._by_id:
            return
        living = sockdiag.listening()
        for one in self:
            self._check(one, living)

    def is_there(self, one: Listener) -> bool:
        """Ask the kernel whether it still listens: the event of its end takes its time.

        Raises OSError.
        """
        if not one.listens or any(sockdiag.listens(one.nudge_target, c) for c in one.cookies):
            return True
        self._check(one, sockdiag.listening())
        return one.listener in self._by_id

    def _check(self, one: Listener, living: set[int]) -> None:
        self._leave(one, {c for c, listens in one.cookies.items() if listens} - living)

    def _read_events(self) -> None:
        cookies, lost = sockdiag.read_ended(self._events)
        for one in self:
            self._leave(one, cookies)
        if lost:
            self.check()

    def _leave(self, one: Listener, cookies: set[int]) -> None:
        """These sockets are gone; so is the listener, if they were its last."""
        if cookies.isdisjoint(one.cookies):
            return
        for cookie in cookies:
            one.cookies.pop(cookie, None)
        if not one.cookies:
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
