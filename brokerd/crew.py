"""The workers as the broker sees them: proxy sockets and a pump that are somewhere else.

The broker keeps the command port, all it knows and all it counts. Workers hold the
descriptors that many relays need and do the work that their bytes are: a listening socket is
made here, so that whether its port is free is known at once, and sent to a worker; accepted
connections come back, are joined with their other half as ever, and go to a worker as a pair.

A worker that ends is replaced. Its relays are gone with it; its proxy sockets are opened
again at once, on the same ports, so that no listener notices. This room must never let a
connection that was accepted for one listener reach the next one on the same port.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event

from gcbpatch.addresses import Address

from .channel import (
    Accepted,
    Channel,
    Closed,
    Ended,
    Join,
    Level,
    Lost,
    Open,
    Ready,
    Shut,
    close_all,
)
from .proxies import is_taken, listening_socket
from .pump import reset

log = logging.getLogger("brokerd")

RESERVE = 64
"""Descriptors of a worker that are for pipes and for what is just being accepted."""
YOUNG = 1.0
"""Seconds; a worker that lived no longer is replaced only after as many."""
REOPENINGS = 20
"""Looks (a quarter of a second apart) for a port that was somebody else's meanwhile."""
END_PATIENCE = 2.0
CLOSE_PATIENCE = 0.5
"""For so long everything else waits for a worker that has a port to close which is wanted again."""

_BOOT = "from brokerd.worker import main; main()"


@dataclass(eq=False)
class Member:
    """One worker: its process, what it holds, and how much of that it may hold."""

    process: subprocess.Popen[bytes]
    channel: Channel
    room: int
    born: float
    proxies: set[int] = field(default_factory=set)
    pairs: dict[int, Callable[[], None]] = field(default_factory=dict)

    def has_room(self, descriptors: int) -> bool:
        """Return whether so many more descriptors can be held there."""
        return len(self.proxies) + 2 * len(self.pairs) + descriptors <= self.room


@dataclass(eq=False)
class Proxy:
    """One proxy socket; ``member`` is None while it has to be opened again."""

    number: int
    address: Address
    member: Member | None
    attempts: int = 0


class Crew:
    """All workers: what Proxies and Pump are in a broker without any."""

    def __init__(
        self,
        loop: Any,
        hosts: Mapping[str, str],
        workers: int,
        accepted: Callable[[Address, socket.socket, Address], None],
        lost: Callable[[Address], None],
    ) -> None:
        """``lost(proxy)`` is called for a proxy socket that cannot be opened again.

        The others are as for Proxies.
        """
        self._loop = loop
        self._hosts = hosts
        self._accepted = accepted
        self._lost = lost
        self._numbers = itertools.count(1)
        self._by_address: dict[Address, Proxy] = {}
        self._by_number: dict[int, Proxy] = {}
        self._closing: dict[Address, tuple[int, Member]] = {}
        self._leaving: dict[int, Address] = {}
        self._homeless: list[Proxy] = []
        self._members: list[Member | None] = [None] * workers
        self._again: dict[int, float] = {}
        self._greeted = 0
        self.ready = Event()
        """Set when all workers run, or one has ended before."""
        for slot in range(workers):
            self._members[slot] = self._start(slot)

    @property
    def is_whole(self) -> bool:
        """Whether every worker runs."""
        return self._greeted >= len(self._members) and None not in self._members

    # --- workers

    def _start(self, slot: int) -> Member:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            level = logging.getLevelName(logging.getLogger().level)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(slot + 1), str(theirs.fileno()), level],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE
        channel = Channel(
            self._loop,
            ours,
            lambda message, fds: self._received(member, message, fds),
            lambda: self._ended(slot, member),
        )
        member = Member(process, channel, room, time.monotonic())
        return member

    def _ended(self, slot: int, member: Member) -> None:
        """A worker is gone, or its channel is: so shall it be, before its ports are opened."""
        member.channel.close()
        member.process.kill()
        status = member.process.wait()
        log.error("worker %d ended (%d) with %d relays", slot + 1, status, len(member.pairs))
        self._members[slot] = None
        now = time.monotonic()
        if now - member.born > YOUNG:
            self._members[slot] = self._start(slot)
        else:
            self._again[slot] = now + YOUNG
            self.ready.set()
        self._inherit(member)

    def _inherit(self, member: Member) -> None:
        """End the relays of a worker that is gone, and open its proxy sockets again."""
        for on_end in member.pairs.values():
            on_end()
        for number in member.proxies:
            proxy = self._by_number.get(number)
            if proxy is None:
                self._forget(number)
            else:
                proxy.member = None
                self._homeless.append(proxy)
        self._find_homes()

    def tick(self, now: float) -> None:
        """Start workers again, and open proxy sockets that could not be opened at once."""
        for slot, due in list(self._again.items()):
            if due <= now:
                del self._again[slot]
                self._members[slot] = self._start(slot)
        if self._homeless:
            self._find_homes()

    def _find_homes(self) -> None:
        homeless, self._homeless = self._homeless, []
        for proxy in homeless:
            if self._by_number.get(proxy.number) is not proxy:
                continue  # given up by its listener meanwhile
            proxy.attempts += 1
            try:
                if self._house(proxy):
                    continue
            except OSError as error:
                log.error("proxy port %d is not open: %s", proxy.address[1], error.strerror)
            if proxy.attempts < REOPENINGS:
                self._homeless.append(proxy)
            else:
                self._lost(proxy.address)

    def _roomiest(self, descriptors: int, weight: Callable[[Member], int]) -> Member | None:
        able = [m for m in self._members if m is not None and m.has_room(descriptors)]
        return min(able, key=weight, default=None)

    def level(self, level: str) -> None:
        """Have the workers log from this level on, too."""
        for member in filter(None, self._members):
            member.channel.send(Level(0, level))

    # --- as Proxies

    def __len__(self) -> int:
        return len(self._by_address)

    def open(self, address: Address) -> bool:
        """As Proxies.open; there are no descriptors either when all workers are full."""
        proxy = Proxy(next(self._numbers), address, None)
        if not self._house(proxy):
            return False
        self._by_address[address] = self._by_number[proxy.number] = proxy
        return True

    def _house(self, proxy: Proxy) -> bool:
        """Have a worker hold a proxy socket; False if the port is in use. Raises OSError."""
        if not self._is_vacant(proxy.address):
            return False
        member = self._roomiest(1, lambda m: len(m.proxies))
        if member is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        host, port = self._hosts[proxy.address[0]], proxy.address[1]
        try:
            sock = listening_socket(host, port)
        except OSError as error:
            if is_taken(error):
                return False
            raise
        proxy.member = member
        proxy.attempts = 0
        member.proxies.add(proxy.number)
        member.channel.send(Open(proxy.number), [sock.detach()])
        return True

    def _is_vacant(self, address: Address) -> bool:
        """Wait, not for long, until a worker has closed what has been at an address before."""
        if address not in self._closing:
            return True
        number, member = self._closing[address]
        closed = member.channel.await_one(Closed, number, CLOSE_PATIENCE)
        if closed is not None:
            self._received(member, closed, [])
        return closed is not None

    def shut(self, address: Address) -> None:
        """As Proxies.shut."""
        proxy = self._by_address.pop(address)
        del self._by_number[proxy.number]
        if proxy.member is not None:
            # What it accepts until it hears of this is no one's.
            self._closing[address] = proxy.number, proxy.member
            self._leaving[proxy.number] = address
            proxy.member.channel.send(Shut(proxy.number))

    # --- as Pump

    def join(
        self, one: socket.socket, other: socket.socket, on_end: Callable[[], None]
    ) -> None:
        """As Pump.join."""
        member = self._roomiest(2, lambda m: len(m.pairs))
        if member is None:
            log.error("no worker has descriptors for a relay")
            reset(one)
            reset(other)
            on_end()
            return
        number = next(self._numbers)
        member.pairs[number] = on_end
        member.channel.send(Join(number), [one.detach(), other.detach()])

    # --- what workers say

    def _received(self, member: Member, message: Any, fds: list[int]) -> None:
        if isinstance(message, Accepted) and len(fds) == 1:
            self._came(message, fds[0])
            return
        close_all(fds)
        if isinstance(message, Ended):
            member.pairs.pop(message.number)()
        elif isinstance(message, Closed):
            member.proxies.discard(message.number)
            self._forget(message.number)
        elif isinstance(message, Lost):
            self._missed(member, message.number)
        elif isinstance(message, Ready):
            self._greeted += 1
            if self.is_whole:
                self.ready.set()

    def _came(self, message: Accepted, fd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        proxy = self._by_number.get(message.number)
        if proxy is None:
            reset(sock)
        else:
            self._accepted(proxy.address, sock, (message.host, message.port))

    def _forget(self, number: int) -> None:
        """A proxy socket that was given up is closed now."""
        address = self._leaving.pop(number)
        if self._closing[address][0] == number:
            del self._closing[address]

    def _missed(self, member: Member, number: int) -> None:
        member.proxies.discard(number)
        proxy = self._by_number.get(number)
        if proxy is not None:
            proxy.member = None
            self._homeless.append(proxy)

    def close(self) -> None:
        """End all workers: each resets what it has and goes."""
        members = [member for member in self._members if member is not None]
        for member in members:
            member.channel.close()
        deadline = time.monotonic() + END_PATIENCE
        for member in members:
            try:
                member.process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
