"""What the broker and its workers say to each other, and the descriptors that go along.

A Unix socket that keeps messages whole. Sending never waits: what the kernel does not take
is queued here, descriptors and all. This room must never leave a descriptor open that nobody
has, nor read from one.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

MESSAGES = 64
"""Read per wake-up, so that relays are not starved."""
MOST_FDS = 4
MOST_BYTES = 1024
CROWDED = 0.01
"""Seconds until the next try when the kernel has too many descriptors on their way."""

_FD_SIZE = array.array("i").itemsize
_SPACE = socket.CMSG_SPACE(MOST_FDS * _FD_SIZE)


class Message(msgspec.Struct, array_like=True, tag=True):
    """Base of all; ``number`` names a proxy socket or a pair, and is used once."""

    number: int


class Open(Message):
    """To a worker: accept from the listening socket that comes along."""


class Shut(Message):
    """To a worker: close a proxy socket. Answered with Closed."""


class Join(Message):
    """To a worker: join the two connections that come along."""


class Level(Message):
    """To a worker: log from this level on."""

    level: str


class Ready(Message):
    """From a worker: it runs."""


class Accepted(Message):
    """From a worker: the connection that comes along was accepted by a proxy socket."""

    host: str
    port: int


class Closed(Message):
    """From a worker: that proxy socket is closed."""


class Lost(Message):
    """From a worker: that proxy socket could not be taken."""


class Ended(Message):
    """From a worker: both connections of that pair are closed."""


_DECODE = msgspec.msgpack.Decoder(
    Open | Shut | Join | Level | Ready | Accepted | Closed | Lost | Ended
).decode
_ENCODE = msgspec.msgpack.Encoder().encode

Received = Callable[[Any, list[int]], None]


class Channel:
    """One end. ``received`` gets each message with the descriptors that are its from then on."""

    def __init__(
        self, loop: Any, sock: socket.socket, received: Received, ended: Callable[[], None]
    ) -> None:
        """``ended`` is called once, when the other side is gone."""
        sock.setblocking(False)
        self._sock = sock
        self._received = received
        self._ended = ended
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._kept: deque[tuple[Any, list[int]]] = deque()
        self._loop = loop
        self._readable = loop.io(sock.fileno(), 1)
        self._writable = loop.io(sock.fileno(), 2)
        self._pause = loop.timer(CROWDED)
        self._readable.start(self._read)

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send a message; ``fds`` are closed when they are on their way, or can never be."""
        self._queue.append((_ENCODE(message), fds or []))
        if len(self._queue) == 1:
            self._write()

    def close(self) -> None:
        """Stop; what was not sent yet is dropped."""
        for watcher in (self._readable, self._writable, self._pause):
            watcher.stop()
            watcher.close()
        self._sock.close()
        for waiting in (self._queue, self._kept):
            while waiting:
                close_all(waiting.popleft()[1])

    def _write(self) -> None:
        self._writable.stop()
        while self._queue:
            data, fds = self._queue[0]
            try:
                self._sock.sendmsg([data], _rights(fds))
            except BlockingIOError:
                self._writable.start(self._write)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    self._pause.start(self._write)
                    return
                # The other side is gone: that is noticed where it is read from.
            self._queue.popleft()
            close_all(fds)

    def await_one(self, kind: type[Message], number: int, seconds: float) -> Message | None:
        """Wait for one message while nothing else goes on; None if it is not there in time.

        What comes before it is received afterwards, in its order.
        """
        self._write()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        deadline = time.monotonic() + seconds
        while poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            try:
                message, fds = self._take()
            except (BlockingIOError, EOFError):
                return None
            if type(message) is kind and message.number == number:
                return message
            self._kept.append((message, fds))
            self._loop.run_callback(self._give_kept)
        return None

    def _read(self) -> None:
        self._give_kept()
        for _ in range(MESSAGES):
            if self._sock.fileno() < 0:
                return  # closed by whoever received
            try:
                message, fds = self._take()
            except BlockingIOError:
                return
            except EOFError:
                self._readable.stop()
                self._ended()
                return
            self._received(message, fds)

    def _give_kept(self) -> None:
        while self._kept:
            self._received(*self._kept.popleft())

    def _take(self) -> tuple[Any, list[int]]:
        """Return the next message. Raises BlockingIOError, and EOFError at the end."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MOST_BYTES, _SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        if not data:
            raise EOFError
        fds = _fds_of(ancillary)
        if flags & socket.MSG_CTRUNC:
            # This process has no number left for all that came along.
            close_all(fds)
            fds = []
        return _DECODE(data), fds


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody takes."""
    for fd in fds:
        os.close(fd)


def _rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)
