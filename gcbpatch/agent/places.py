"""The places of a backlog: how many connections may be on their way to one listener.

It must never let in more than the kernel would hold, nor let anybody pass who waits.
"""

from __future__ import annotations

import asyncio
import collections
from pathlib import Path


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
