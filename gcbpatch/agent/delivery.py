"""How a brokered connection gets into a program: queue, nudge, and a bridge for strangers.

The connection goes into the listener's queue, an AF_UNIX pair that all processes of the
program share, and a connect from a reserved loopback address (the nudge) makes the kernel
report the program's own listening socket readable: no poller is ever fooled. A patched
program closes the nudge and takes the queue's head. A program that is not patched keeps the
nudge, thinking that it is its client: then the agent takes the head and bridges the two. A
process that has the queue may be a patched one, suspended: it gets its connection back if it
closes the nudge without having said or read anything. What is left in the queue by one that
was killed is nudged for again.

No more connections are on their way than the listener's backlog lets the kernel hold. It
must never lose or reorder what is in the queue.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ..addresses import Address, format_address
from . import sockdiag, streams
from .bridge import bridge, is_served
from .door import NUDGE_HOST, Arrival, Endpoint, pop, push
from .holders import Holders

log = logging.getLogger("gcbpatch.agent")

NUDGE_SECONDS = 0.5
QUICK_SECONDS = 0.02
"""When a nudge is looked after: a patched program that is not busy has closed it by then."""
MOST_SPARE = 32
SPARE_SECONDS = 1.0
LOOK_SECONDS = 0.1
"""How long a patched program may hold a nudge, as a rule: it closes it right after accept()."""
MOST_LOOK_SECONDS = 1.0
_HOLDERS = Holders()
MOST_IN_VAIN = 20
"""Nudges for what is left, one after the other, until its client is told that nobody wants it."""


def most_backlog() -> int:
    """Return what the kernel cuts every backlog down to (net.core.somaxconn)."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


class Room:
    """The places of a backlog: as many connections as the kernel would hold, and one more.

    Who waits gets a place in turn; taking a free one costs no round of the loop.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._taken = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    def allow(self, backlog: int) -> None:
        """listen() was called with another backlog."""
        self._backlog = backlog
        self._let_in()

    async def take(self) -> None:
        """Wait for a place and take it: that is how long a kernel's connect waits, too."""
        if not self.is_full():
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()  # those before us may be cancelled ones
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:
                self.give()  # it was given to us in the same moment
            raise

    def is_full(self) -> bool:
        """Return whether the next one who comes has to wait."""
        return self._taken > self._backlog or bool(self._waiting)

    def give(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        """Take places for those who wait; a cancelled turn is still in the row, and passed over."""
        turns = (turn for turn in tuple(self._waiting) if not turn.done())
        while self._taken <= self._backlog and (turn := next(turns, None)) is not None:
            self._waiting.remove(turn)
            self._taken += 1
            turn.set_result(None)


class Place:
    """A place in the backlog, waited for; deliver() keeps it for the connection."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.kept = False

    async def __aenter__(self) -> Place:
        await self.room.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.kept:
            self.room.give()


class Delivery:
    """The way into one listener. ``target`` is where its socket is reached from this host."""

    def __init__(
        self, target: Address, take: socket.socket, put: socket.socket, backlog: int
    ) -> None:
        self.target = target
        self.ends = take, put
        self._room = Room(min(backlog, most_backlog()))
        self._running: set[asyncio.Task[None]] = set()
        self._nudges: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._done: Callable[[], None] | None = None
        self._queue = frozenset(os.fstat(end.fileno()).st_ino for end in self.ends)
        self._nudging = 0
        """Nudges that nobody has closed yet."""
        self._looking = False
        self._in_vain = 0
        self._largest = 1
        """Octets of the largest arrival so far."""
        for end in self.ends:
            end.setblocking(False)

    def allow(self, backlog: int) -> None:
        """Hold as many connections as this backlog allows from now on."""
        self._room.allow(min(backlog, most_backlog()))

    def place(self) -> Place:
        """Return a place in the backlog, to be entered before a connection is made for it."""
        if self._room.is_full():
            self._sweep()
        return Place(self._room)

    def deliver(self, sock: socket.socket, peer: Address, place: Place) -> bool:
        """Put a connection into the queue and nudge; False (and RST) if it is full or gone."""
        nudge, port = _SPARE.take()
        try:
            arrival = Arrival(port, Endpoint.of(peer))
            self._largest = max(self._largest, push(self.ends[1], arrival, sock.fileno()))
        except OSError:
            nudge.close()
            streams.reset(sock)
            return False
        # At once: the program need not wait for our loop. What became of it is asked below.
        nudge.connect_ex(self.target)
        sock.close()
        place.kept = True
        self._nudging += 1
        self._watch(nudge)
        return True

    def _watch(self, nudge: socket.socket) -> None:
        """See to it later that the nudge was closed: most are, before anybody could look.

        To be woken by each close would cost the program a switch in the midst of its accept().
        """
        if self._room.is_full():
            self._look(nudge)
            return
        self._nudges.append(nudge)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(QUICK_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Clear away closed nudges; the others are worth a task each."""
        nudges, self._nudges = self._nudges, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for nudge in nudges:
            if not _is_closed(nudge):
                self._look(nudge)
                continue
            streams.reset(nudge)
            self._nudging -= 1
            self._room.give()
        _SPARE.refill(len(nudges))
        if self._is_more_than_nudged() and not self._looking:
            self._run(self._look_what_is_left())
        self._finish_if_idle()

    def _look(self, nudge: socket.socket) -> None:
        self._run(self._nudge_and_bridge(nudge, self._room.give))

    def resume(self) -> None:
        """A former agent may have died between push and nudge; one nudge too many is harmless."""
        self._nudge_for(_nudge_socket(), _nothing)

    def close(self, done: Callable[[], None]) -> None:
        """The listener is gone; call ``done`` when there is nothing more to carry for it.

        What was accepted before its end, by a program that is not patched, is bridged.
        """
        self._done = done
        self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self._done is not None and not self._running and not self._nudges:
            self._finish()

    def _finish(self) -> None:
        """Reset what nobody will take, as the kernel does."""
        while (got := pop(self.ends[0])) is not None:
            streams.reset(socket.socket(fileno=got[0]))
        for end in self.ends:
            end.close()
        assert self._done is not None
        self._done()

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(step)
        self._running.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("delivering a connection failed", exc_info=task.exception())
        self._finish_if_idle()

    def _nudge_for(self, nudge: socket.socket, taken: Callable[[], None]) -> None:
        self._nudging += 1
        self._run(self._nudge_and_bridge(nudge, taken))

    async def _nudge_and_bridge(
        self, nudge: socket.socket, taken: Callable[[], None]
    ) -> None:
        """Nudge; say ``taken``; and if a program that is not patched has it, be its client."""
        try:
            kept = await self._nudge(nudge)
        finally:
            self._nudging -= 1
            taken()
        if kept is not None:
            with kept:
                await self._bridge(kept)
        else:
            await self._look_what_is_left()

    async def _look_what_is_left(self) -> None:
        """Nudge once more for what somebody has left in the queue who closed its nudge.

        He was killed before he took it, or there were several in one group of sockets. Who
        lives takes it within LOOK_SECONDS; if not, a nudge too many is harmless.
        """
        if self._looking:
            return
        if not self._is_more_than_nudged():
            self._in_vain = 0
            return
        self._looking = True
        await asyncio.sleep(LOOK_SECONDS)
        self._looking = False
        if self._is_more_than_nudged():
            self._nudge_again()

    def _nudge_again(self) -> None:
        """A program that is not patched may close whatever it accepts: its clients see that."""
        self._in_vain += 1
        if self._in_vain > MOST_IN_VAIN and (got := pop(self.ends[0])) is not None:
            log.info("reset a connection that nobody takes")
            streams.reset(socket.socket(fileno=got[0]))
            self._in_vain = 0
        self._nudge_for(_nudge_socket(), _nothing)

    def _is_more_than_nudged(self) -> bool:
        """Whether there are connections in the queue that no nudge is under way for."""
        if self._done is not None:
            return False
        octets = fcntl.ioctl(self.ends[0].fileno(), termios.FIONREAD, bytes(4))
        return struct.unpack("i", octets)[0] > self._nudging * self._largest

    async def _nudge(self, nudge: socket.socket) -> socket.socket | None:
        """Make the listener readable, and keep at it until the nudge was accepted.

        Returns the nudge if who accepted it keeps it. A full backlog drops SYNs, and the
        kernel sends them again ever more seldom: a fresh nudge is quicker.
        """
        while not await _connected(nudge, self.target):
            nudge.close()
            if self._done is not None:
                return None
            nudge = _nudge_socket()
        if await _let_go(nudge, self.target):
            # Resetting leaves nothing in TIME_WAIT at the program's end: nudges come from one
            # address and would use up its ports in a minute.
            streams.reset(nudge)
            return None
        return nudge

    async def _bridge(self, nudge: socket.socket) -> None:
        """Be the client of who keeps the nudge, once it is certain that he takes it for one."""
        got = pop(self.ends[0])
        if got is None:
            return
        fd, arrival = got
        with socket.socket(fileno=fd) as sock:
            sock.setblocking(False)
            if await self._is_wanted(nudge, sock):
                log.info("bridging a connection to a program that is not patched")
                await bridge(nudge, sock)
            else:
                self._put_back(sock, arrival)

    async def _is_wanted(self, nudge: socket.socket, sock: socket.socket) -> bool:
        """Whether who keeps a nudge takes it for a client.

        A process without the queue does. One that has it is patched, and is suspended in the
        midst of accept(); or something in it accepts by itself, past the patch.
        """
        standing = _accepted(self.target, nudge)
        if standing is not None and _HOLDERS.has_both(standing[0], self._queue):
            return await is_served(nudge, sock, lambda: _unread(self.target, nudge))
        # Who was not found may have closed it meanwhile, as a patched one does.
        return _accepted(self.target, nudge) is not None or not _is_closed(nudge)

    def _put_back(self, sock: socket.socket, arrival: Arrival) -> None:
        """It was a patched process that was suspended with the nudge, or was killed."""
        try:
            push(self.ends[1], arrival, sock.fileno())
        except OSError:
            streams.linger_not(sock)
            return
        if self._done is None:
            self._nudge_again()


def _nothing() -> None:
    """No place in the backlog was taken."""


def _nudge_socket() -> socket.socket:
    sock = socket.socket()
    try:
        sock.setblocking(False)
        sock.bind((NUDGE_HOST, 0))
    except OSError:
        sock.close()
        raise
    return sock


class _Spare:
    """Nudges made ahead: making one takes as long as all the rest of a delivery.

    An agent with nothing to deliver keeps none.
    """

    def __init__(self) -> None:
        self._nudges: list[tuple[socket.socket, int]] = []
        self._idle: asyncio.TimerHandle | None = None

    def take(self) -> tuple[socket.socket, int]:
        """Return a nudge and its port; raises OSError."""
        return self._nudges.pop() if self._nudges else _with_port(_nudge_socket())

    def refill(self, used: int) -> None:
        """Have as many as were needed just now, while there is nothing to deliver."""
        with contextlib.suppress(OSError):  # whoever needs one will see why
            while len(self._nudges) < min(used, MOST_SPARE):
                self._nudges.append(_with_port(_nudge_socket()))
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(SPARE_SECONDS, self._drop)

    def _drop(self) -> None:
        while self._nudges:
            self._nudges.pop()[0].close()


_SPARE = _Spare()


def _with_port(nudge: socket.socket) -> tuple[socket.socket, int]:
    return nudge, nudge.getsockname()[1]


async def _connected(nudge: socket.socket, target: Address) -> bool:
    """Connect; False if the backlog is full, True also if nobody listens any more."""
    try:
        async with asyncio.timeout(NUDGE_SECONDS):
            await asyncio.get_running_loop().sock_connect(nudge, target)
    except TimeoutError:
        return False
    except OSError:
        return True  # the listener is gone: the kernel will tell of its end
    return True


async def _let_go(nudge: socket.socket, target: Address) -> bool:
    """Wait until the nudge is closed by who accepted it; False if it is kept or spoken on."""
    pause, accepted = LOOK_SECONDS, False
    while True:
        try:
            async with asyncio.timeout(pause):
                await streams.readable(nudge)
            return _is_closed(nudge)
        except TimeoutError:
            if accepted:
                return False
        # Only what is accepted stands on a file: a nudge in the backlog may wait for minutes.
        accepted = _accepted(target, nudge) is not None
        pause = LOOK_SECONDS if accepted else min(2 * pause, MOST_LOOK_SECONDS)


def _unread(target: Address, nudge: socket.socket) -> int | None:
    standing = _accepted(target, nudge)
    return None if standing is None else standing[1]


def _accepted(target: Address, nudge: socket.socket) -> tuple[int, int] | None:
    try:
        return sockdiag.accepted(target, nudge.getsockname())
    except OSError as error:
        log.warning("cannot see who accepts at %s: %s", format_address(target), error)
        return None


def _is_closed(nudge: socket.socket) -> bool:
    try:
        return nudge.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
