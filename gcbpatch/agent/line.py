"""Control frames over TCP, for where no datagrams come through.

A line is one connection to the broker's command port on which the frames go that datagrams
would carry, in both directions. It must never say again what it has said: TCP does that, and
a line that does not get through is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ..addresses import Address
from ..errors import RemoteProtocolError
from ..wire.codec import Frame
from ..wire.session import FrameReader
from . import streams

DEAD_MS = 10_000
"""Milliseconds after which what nobody acknowledges ends the line (TCP_USER_TIMEOUT)."""



class Line:
    """An open connection to a broker; ``lost`` is called once if it ends by itself."""

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[Line, Frame], None],
        lost: Callable[[Line], None],
    ) -> None:
        self._sock = sock
        self._received = received
        self._lost = lost
        self._reader = FrameReader()
        self._loop = asyncio.get_running_loop()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_MS)
        self.host = str(sock.getsockname()[0])
        """The address of this host on the line."""
        self._loop.add_reader(sock, self._readable)

    @property
    def is_open(self) -> bool:
        """Whether it has neither been closed nor ended by itself."""
        return self._sock.fileno() >= 0

    def send(self, data: bytes) -> None:
        """Say a frame; if it cannot be said at once the line ends."""
        try:
            whole = self.is_open and self._sock.send(data) == len(data)
        except OSError:
            whole = False
        if not whole:
            # Whoever calls may wait for the answer: told in a moment, not from in here.
            self._loop.call_soon(self._end)

    def _readable(self) -> None:
        try:
            while self.is_open:
                data = self._sock.recv(self._reader.wants)
                if not data:
                    raise ConnectionResetError("the broker closed the line")
                frame = self._reader.feed(data)
                if frame is not None:
                    self._received(self, frame)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError):
            self._end()

    def _end(self) -> None:
        if self.is_open:
            self.close()
            self._lost(self)

    def close(self) -> None:
        """End it."""
        if self.is_open:
            self._loop.remove_reader(self._sock)
            self._sock.close()


async def dial(
    broker: Address, received: Callable[[Line, Frame], None], lost: Callable[[Line], None]
) -> Line:
    """Return a line to a broker; raises OSError."""
    return Line(await streams.dial(broker), received, lost)
