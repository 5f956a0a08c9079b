"""Nudges: connects from a reserved loopback address that make a listening socket readable.

By IPv6, which has one loopback address only, they have a mark.

What becomes of one tells who accepted it: a patched program closes it at once. It must never
send anything on one: who is not patched takes it for its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from ..addresses import Address, format_address
from ..tree import NUDGE_HOST, NUDGE_HOST_6, NUDGE_SEGMENT
from . import sockdiag, streams

log = logging.getLogger("gcbpatch.agent")

NUDGE_SECONDS = 0.5
MOST_SPARE = 32
SPARE_SECONDS = 1.0
LOOK_SECONDS = 0.1
"""How long a patched program may hold a nudge, as a rule: it closes it right after accept()."""
MOST_LOOK_SECONDS = 1.0


def new(target: Address) -> socket.socket:
    """Return a socket that a connect to ``target`` is a nudge from; raises OSError."""
    return _new(":" in target[0])


def _new(v6: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
    try:
        sock.setblocking(False)
        if v6:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, NUDGE_SEGMENT)
        sock.bind((NUDGE_HOST_6 if v6 else NUDGE_HOST, 0))
    except OSError:
        sock.close()
        raise
    return sock


class _Spare:
    """Nudges made ahead: making one takes as long as all the rest of a delivery.

    An agent with nothing to deliver keeps none.
    """

    def __init__(self, v6: bool) -> None:
        self._v6 = v6
        self._nudges: list[tuple[socket.socket, int]] = []
        self._idle: asyncio.TimerHandle | None = None

    def take(self) -> tuple[socket.socket, int]:
        """Return a nudge and its port; raises OSError."""
        return self._nudges.pop() if self._nudges else _with_port(_new(self._v6))

    def refill(self, used: int) -> None:
        """Have as many as were needed just now, while there is nothing to deliver."""
        with contextlib.suppress(OSError):  # whoever needs one will see why
            while len(self._nudges) < min(used, MOST_SPARE):
                self._nudges.append(_with_port(_new(self._v6)))
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(SPARE_SECONDS, self._drop)

    def _drop(self) -> None:
        while self._nudges:
            self._nudges.pop()[0].close()


_SPARE = {v6: _Spare(v6) for v6 in (False, True)}


def spare(target: Address) -> _Spare:
    """Return those with which ``target`` can be nudged."""
    return _SPARE[":" in target[0]]


def _with_port(nudge: socket.socket) -> tuple[socket.socket, int]:
    return nudge, nudge.getsockname()[1]


async def connected(nudge: socket.socket, target: Address) -> bool:
    """Connect; False if the backlog is full, True also if nobody listens any more."""
    try:
        async with asyncio.timeout(NUDGE_SECONDS):
            await asyncio.get_running_loop().sock_connect(nudge, target)
    except TimeoutError:
        return False
    except OSError:
        return True  # the listener is gone: the kernel will tell of its end
    return True


async def let_go(nudge: socket.socket, target: Address) -> bool:
    """Wait until the nudge is closed by who accepted it; False if it is kept or spoken on."""
    pause, is_taken = LOOK_SECONDS, False
    while True:
        try:
            async with asyncio.timeout(pause):
                await streams.readable(nudge)
            return is_closed(nudge)
        except TimeoutError:
            if is_taken:
                return False
        # Only what is accepted stands on a file: a nudge in the backlog may wait for minutes.
        is_taken = accepted(target, nudge) is not None
        pause = LOOK_SECONDS if is_taken else min(2 * pause, MOST_LOOK_SECONDS)


def unread(target: Address, nudge: socket.socket) -> int | None:
    """Return how many octets wait for who accepted a nudge; None if nobody has, or he is gone."""
    standing = accepted(target, nudge)
    return None if standing is None else standing[1]


def accepted(target: Address, nudge: socket.socket) -> tuple[int, int] | None:
    """Return the inode of the nudge's other end, and its unread octets; None if not accepted."""
    try:
        return sockdiag.accepted(target, nudge.getsockname()[:2])
    except OSError as error:
        log.warning("cannot see who accepts at %s: %s", format_address(target), error)
        return None


def is_closed(nudge: socket.socket) -> bool:
    """Whether who accepted a nudge has closed it, or its listener has reset it."""
    try:
        return nudge.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
