"""The page on which the agent writes where a port's peers are reached past the relay.

Looked at before every datagram to a peer of the relay's: one number tells whether the page is
another than before, one until when a way is good. To whom datagrams go by the relay is said
to the agent in a datagram from the port to itself, now and then. This room must never wait,
and never use a way a moment longer than the agent has allowed.
"""

from __future__ import annotations

import mmap
import time

from ..addresses import Address
from ..wire import waypage
from ..wire.waypage import UNTIL, USED, Entry

FIRST_PAUSE, MOST_PAUSE = 1_000_000_000, 32_000_000_000
"""Nanoseconds until the agent is told again of a peer; doubled while no way is found."""
MOST_ASKED = 4096


class WayPage:
    """One port's ways, as a program sees them."""

    def __init__(self, fd: int) -> None:
        """Map the page behind ``fd``, which may be closed afterwards. Raises OSError."""
        self._room = memoryview(mmap.mmap(fd, waypage.SIZE))
        self._words = self._room.cast("Q")
        self._edition = -1
        self.is_over = False
        """Whether the port has another page, and another relay."""
        self._entries: dict[bytes, Entry] = {}
        self._asked: dict[bytes, tuple[int, int]] = {}

    def way(self, header: bytes) -> tuple[bytes, Address] | None:
        """Return what to send before a payload, and where to; None if it has to go by the relay.

        ``header`` is the one that the relay would get.
        """
        words = self._words
        if words[0] != self._edition:
            self.is_over = bool(words[2])
            self._edition = words[0]
            self._entries = waypage.entries(self._room)
        entry = self._entries.get(header)
        if entry is None or words[entry[2] + UNTIL] <= time.monotonic_ns():
            return None
        words[entry[2] + USED] = 1
        return entry[0], entry[1]

    def failed(self, header: bytes) -> None:
        """A way cannot be used from here: it is not tried again until the page is another."""
        self._entries.pop(header, None)

    def is_due(self, header: bytes) -> bool:
        """Return whether the agent is to be told that the peer is spoken with by the relay."""
        now = time.monotonic_ns()
        due, pause = self._asked.get(header, (0, FIRST_PAUSE))
        if now < due:
            return False
        if len(self._asked) >= MOST_ASKED:
            self._asked.clear()
        # One that there was a way to may be back in a moment.
        known = header in self._entries
        self._asked[header] = now + pause, FIRST_PAUSE if known else min(2 * pause, MOST_PAUSE)
        return True
