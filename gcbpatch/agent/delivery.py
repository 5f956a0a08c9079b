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
import fcntl
import logging
import os
import socket
import struct
import termios
from collections.abc import Callable, Coroutine
from typing import Any

from ..addresses import Address
from . import nudges, streams
from .bridge import bridge, is_served
from .door import Arrival, Endpoint, pop, push
from .holders import Holders
from .places import Place, Room, most_backlog

log = logging.getLogger("gcbpatch.agent")

QUICK_SECONDS = 0.02
"""When a nudge is looked after: a patched program that is not busy has closed it by then."""
_HOLDERS = Holders()
MOST_IN_VAIN = 20
"""Nudges for what is left, one after the other, until its client is told that nobody wants it."""


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
        nudge, port = nudges.spare(self.target).take()
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
        made, self._nudges = self._nudges, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for nudge in made:
            if not nudges.is_closed(nudge):
                self._look(nudge)
                continue
            streams.reset(nudge)
            self._nudging -= 1
            self._room.give()
        nudges.spare(self.target).refill(len(made))
        if self._is_more_than_nudged() and not self._looking:
            self._run(self._look_what_is_left())
        self._finish_if_idle()

    def _look(self, nudge: socket.socket) -> None:
        self._run(self._nudge_and_bridge(nudge, self._room.give))

    def resume(self) -> None:
        """A former agent may have died between push and nudge; one nudge too many is harmless."""
        self._nudge_for(nudges.new(self.target), _nothing)

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
        lives takes it within nudges.LOOK_SECONDS; if not, a nudge too many is harmless.
        """
        if self._looking:
            return
        if not self._is_more_than_nudged():
            self._in_vain = 0
            return
        self._looking = True
        await asyncio.sleep(nudges.LOOK_SECONDS)
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
        self._nudge_for(nudges.new(self.target), _nothing)

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
        while not await nudges.connected(nudge, self.target):
            nudge.close()
            if self._done is not None:
                return None
            nudge = nudges.new(self.target)
        if await nudges.let_go(nudge, self.target):
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
        standing = nudges.accepted(self.target, nudge)
        if standing is not None and _HOLDERS.has_both(standing[0], self._queue):
            return await is_served(nudge, sock, lambda: nudges.unread(self.target, nudge))
        # Who was not found may have closed it meanwhile, as a patched one does.
        return nudges.accepted(self.target, nudge) is not None or not nudges.is_closed(nudge)

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
