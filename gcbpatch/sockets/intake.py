"""The program's hold on a listener's queue: both ends, shared by its dups, forks and agents.

The kernel keeps the queue while any process has an end, so connections in it outlive the
agent that put them there. It must never use a descriptor number without looking whose it is:
programs close descriptors that they have not opened.
"""

from __future__ import annotations

import _socket
import socket

from .later import door
from .table import cookie_of, is_same


class Intake:
    """Where brokered connections come out (``take``) and where an agent puts them in (``put``)."""

    def __init__(self, take: _socket.socket, put: _socket.socket) -> None:
        self._ends = tuple((end, cookie_of(end)) for end in (take, put))

    @classmethod
    def new(cls) -> Intake:
        """Make an empty queue."""
        take, put = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls.of(take, put)

    @classmethod
    def of(cls, take: _socket.socket, put: _socket.socket) -> Intake:
        """Use a queue that is there."""
        take.setblocking(False)
        put.setblocking(False)
        return cls(take, put)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Both ends, for an agent."""
        return tuple(end.fileno() for end, _ in self._ends)

    def is_whole(self) -> bool:
        """Return whether both descriptors are still the queue's."""
        return all(is_same(*end) for end in self._ends)

    def gives(self) -> bool:
        """Return whether the descriptor that connections come out of is still the queue's."""
        return is_same(*self._ends[0])

    def pop(self) -> tuple[int, door.Arrival] | None:
        """Take the oldest connection; None when there is none (any more)."""
        return door.pop(self._ends[0][0])

    def close(self) -> None:
        """Let go of it, in this process."""
        for end, cookie in self._ends:
            if is_same(end, cookie):
                end.close()
            else:
                end.detach()
