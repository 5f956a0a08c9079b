"""Connections to a broker's relay that wait there, so that who is called need not dial first.

One waits while anything listens by that broker; more, up to MOST, while they are being used.
PARK keeps each, through NATs too; one that has ended is replaced, not in a hurry. It must never
hand out a connection on which an answer is still to come, nor keep trying where it is not wanted.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import random
import socket
from collections.abc import Callable

from ..addresses import Address, format_address
from ..errors import RefusedError, RemoteProtocolError, Status
from ..wire.auth import Key
from ..wire.messages import Command, Park, ParkReply
from . import streams
from .mapping import Mapping
from .meeting import NONCE_BYTES

log = logging.getLogger("gcbpatch.agent")

MOST = 4
USED_SECONDS = 60.0
"""For so long after each use one more is kept."""
PAUSE_SECONDS = 25.0
"""Between two PARKs, unless the broker's patience is shorter than three of them."""
ANSWER_SECONDS = 10.0
RETRY_SECONDS = (0.5, 30.0)
"""After a failure: at least, and at most when one follows the other."""
SPREAD_SECONDS = 3.0
"""When a broker ends, all its clients notice at once, and should not come back so."""
UNSUPPORTED_SECONDS = 600.0


def _nothing() -> None:
    """Nobody wants to know."""


class Half:
    """One connection, and whether it may be taken just now."""

    def __init__(self) -> None:
        self.nonce = os.urandom(NONCE_BYTES)
        self.sock: socket.socket | None = None
        self.is_free = self.is_taken = False
        self.task: asyncio.Task[None] | None = None

    @property
    def source(self) -> Address:
        """Where it leaves from."""
        assert self.sock is not None
        host, port = self.sock.getsockname()[:2]
        return host, port

    def hand_over(self) -> socket.socket:
        """Return its socket, which is the caller's from now on."""
        sock, self.sock = self.sock, None
        assert sock is not None
        return sock

    def close(self) -> None:
        """Close it, unless it was handed over."""
        if self.sock is not None:
            self.sock.close()


class Halves:
    """Those at one broker. ``relay`` tells where that is dialled at the moment."""

    def __init__(
        self, relay: Callable[[], Address], client: bytes, key: Key | None, mapping: Mapping
    ) -> None:
        self.on_lost: Callable[[], None] = _nothing
        """Called when one that waited has ended by itself: the broker may have, too."""
        self._relay = relay
        self._client = client
        self._key = key
        self._mapping = mapping
        self._listener: bytes | None = None
        self._all: list[Half] = []
        self._used: collections.deque[float] = collections.deque(maxlen=MOST - 1)
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._news: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many could be taken now."""
        return sum(half.is_free for half in self._all)

    @property
    def _wanted(self) -> int:
        if self._listener is None:
            return 0
        since = asyncio.get_running_loop().time() - USED_SECONDS
        return 1 + sum(used >= since for used in self._used)

    def keep_for(self, listener: bytes | None) -> None:
        """Keep some from now on, as the client of ``listener``; none without one."""
        self._listener = listener
        if listener is None:
            self.close()
        elif self._retry is None:
            self._fill()

    def begin_for(self, listener: bytes) -> None:
        """The broker has just taken ``listener``: keep some soon, whatever it refused before.

        At once, unless it may be that all its clients have lost theirs in the same moment.
        """
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._listener = listener
        if self._failures:
            self._retry = self._later(SPREAD_SECONDS, self._fill)
        else:
            self._fill()

    async def take(self, nonce: bytes = b"") -> Half | None:
        """Return one that waits, its caller's from now on; None if there is none.

        It is the one of that ``nonce`` if that is possible.
        """
        free = [half for half in self._all if half.is_free]
        if not free:
            return None
        half = next((half for half in free if half.nonce == nonce), free[0])
        self._used.append(asyncio.get_running_loop().time())
        self._all.remove(half)
        half.is_taken = True
        assert half.task is not None
        half.task.cancel()
        await asyncio.gather(half.task, return_exceptions=True)
        if self._retry is None:
            self._fill()
        return half

    def renew(self) -> None:
        """Close all and begin anew: this host has another address."""
        listener = self._listener
        self.close()
        self.keep_for(listener)

    def close(self) -> None:
        """Close all."""
        self._listener = None
        for timer in (self._retry, self._news):
            if timer is not None:
                timer.cancel()
        self._retry = self._news = None
        for half in self._all:
            assert half.task is not None
            half.task.cancel()
        self._all.clear()

    def _later(self, seconds: float, step: Callable[[], None]) -> asyncio.TimerHandle:
        """Do something within so many seconds, when others of a broker's clients do not."""
        return asyncio.get_running_loop().call_later(random.uniform(0, seconds), step)

    def _fill(self) -> None:
        self._retry = None
        for _ in range(self._wanted - len(self._all)):
            half = Half()
            self._all.append(half)
            half.task = asyncio.ensure_future(self._keep(half))

    async def _keep(self, half: Half) -> None:
        """Dial and park one connection until it is taken, ends, or is one too many."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                half.sock = await streams.dial(self._relay(), shared=True)
            while len(self._all) <= self._wanted:
                await self._wait(half, half.sock)
            self._all.remove(half)
        except (OSError, RefusedError, RemoteProtocolError) as error:
            self._failed(half, error)
        finally:
            if not half.is_taken:
                half.close()

    async def _wait(self, half: Half, sock: socket.socket) -> None:
        """Say PARK, and wait until it is time for the next. Raises as streams.ask does."""
        assert self._listener is not None
        port = sock.getsockname()[1]
        independent = self._mapping.is_independent
        asked = Park(self._client, self._listener, half.nonce, port, independent)
        async with asyncio.timeout(ANSWER_SECONDS):
            reply = await streams.ask(sock, Command.PARK, asked, self._key)
        assert isinstance(reply, ParkReply)
        log.debug("a connection waits at %s", format_address(self._relay()))
        self._failures = 0
        half.is_free = True
        try:
            async with asyncio.timeout(min(PAUSE_SECONDS, reply.patience / 3)):
                await streams.readable(sock)
        except TimeoutError:
            return
        finally:
            half.is_free = False
        self._news = self._later(SPREAD_SECONDS, self.on_lost)
        raise ConnectionResetError("it was closed while it waited")

    def _failed(self, half: Half, error: Exception) -> None:
        """Try again in a while; there is no hurry, as whoever is called may dial."""
        if half not in self._all:
            return
        self._all.remove(half)
        log.debug("no connection waits at %s: %s", format_address(self._relay()), error)
        least, most = RETRY_SECONDS
        pause = min(most, least * 2**self._failures) * random.uniform(1, 3)
        self._failures = min(self._failures + 1, 10)
        if isinstance(error, RefusedError) and error.status is Status.UNSUPPORTED:
            pause = UNSUPPORTED_SECONDS
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(pause, self._fill)
