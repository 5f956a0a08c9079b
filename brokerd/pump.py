"""Byte pump: joins two connected sockets so that each sees what the other one sent.

Model: two halves, one per direction; watcher callbacks on raw descriptors, no greenlets.
Small reads are copied through one shared buffer; once a read fills it, the half moves
pipe-fulls by splice(2) without copying, until reads are small again.

Goals: what the ends see is what they would see without us. End of stream is passed on when
all before it is, each way alone. A reset is passed on as a reset, after what came before
it. Nothing is read that cannot be written: a slow reader slows its writer.

It must never look at the bytes, and never hold more of them than one pipe a direction.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any, Protocol

COPY_SIZE = 32 * 1024
SPLICE_SIZE = 1024 * 1024
PIPE_SIZES = (SPLICE_SIZE, 256 * 1024)
IDLE_PIPES = 64
ROUNDS = 4
"""Reads per wake-up of one half, so that a fast pair does not starve the others."""
BULK_ROUNDS = 16
"""Small reads in a row after which a half goes back to copying."""
BULK_READ = 16 * 1024
RESET_POLL = 0.05
RESET_PATIENCE = 10.0
READ, WRITE = 1, 2

_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_LINGER_0 = struct.pack("ii", 1, 0)

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


def reset(sock: socket.socket) -> None:
    """Close a connection so that its peer sees a reset, not an end of stream."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    finally:
        sock.close()


class Pipe:
    """A kernel pipe as the place between two splices; ``held`` bytes are in it."""

    __slots__ = ("held", "r", "w")

    def __init__(self) -> None:
        self.r, self.w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0

    def close(self) -> None:
        os.close(self.r)
        os.close(self.w)


class Pipes:
    """Empty pipes for whoever needs one for a moment, as large as this user may have them.

    An unprivileged user gets 16 MiB of large pipes in all (fs.pipe-user-pages-soft), then
    EPERM: smaller ones do too. Without descriptors there is none, and halves copy.
    """

    def __init__(self) -> None:
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe; None if the kernel gives no more."""
        if self._idle:
            return self._idle.pop()
        try:
            pipe = Pipe()
        except OSError:
            return None
        _enlarge(pipe)
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back; one that still holds bytes is closed."""
        if pipe.held or len(self._idle) >= IDLE_PIPES:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close the idle ones."""
        while self._idle:
            self._idle.pop().close()


def _enlarge(pipe: Pipe) -> None:
    for size in PIPE_SIZES:
        try:
            fcntl.fcntl(pipe.w, fcntl.F_SETPIPE_SZ, size)
            return
        except OSError:
            # Not allowed that much: the next size, and in the end the kernel's default.
            continue


class Half:
    """One direction: from ``source`` to ``sink``."""

    __slots__ = (
        "_bulk", "_pair", "_pipe", "_pump", "_rest", "_room", "_wake", "done", "sink", "source"
    )

    def __init__(
        self, pump: Pump, pair: Pair, source: socket.socket, sink: socket.socket
    ) -> None:
        self._pump = pump
        self._pair = pair
        self.source = source
        self.sink = sink
        self.done = False
        self._bulk = 0
        self._rest = b""
        self._pipe: Pipe | None = None
        self._wake: Any = pump.loop.io(source.fileno(), READ)
        self._room: Any = None
        self._wake.start(self._readable)

    def _readable(self) -> None:
        try:
            if not (self._bulk and self._splice()):
                self._copy()
        except BlockingIOError:
            return
        except OSError:
            # Only reads raise to here: the source was reset, all before it is passed on.
            self._pair.abort(self.sink)

    def _copy(self) -> None:
        view = self._pump.view
        n = self.source.recv_into(view)
        if n == 0:
            self._end()
            return
        if n == COPY_SIZE:
            self._bulk = BULK_ROUNDS
        sent = self._send(view[:n])
        if sent is not None and sent < n:
            self._rest = bytes(view[sent:n])
            self._wait_for_room()

    def _send(self, data: memoryview | bytes) -> int | None:
        """Return how much the sink took; None if it is broken."""
        try:
            return self.sink.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._break()
            return None

    def _splice(self) -> bool:
        """Move pipe-fulls; False if there is no pipe to be had."""
        pipe = self._pump.pipes.take()
        if pipe is None:
            self._bulk = 0
            return False
        self._pipe = pipe
        try:
            self._splice_rounds(pipe)
        finally:
            self._release()
        return True

    def _splice_rounds(self, pipe: Pipe) -> None:
        for _ in range(ROUNDS):
            n = os.splice(self.source.fileno(), pipe.w, SPLICE_SIZE, flags=_SPLICE)
            if n == 0:
                self._end()
                return
            self._bulk = BULK_ROUNDS if n >= BULK_READ else self._bulk - 1
            pipe.held = n
            if not self._empty(pipe):
                return
            if n < BULK_READ:
                return  # a second read would most likely find nothing

    def _empty(self, pipe: Pipe) -> bool:
        """Write what the pipe holds; False if the sink takes no more for now, or ever."""
        try:
            while pipe.held:
                pipe.held -= os.splice(pipe.r, self.sink.fileno(), pipe.held, flags=_SPLICE)
        except BlockingIOError:
            self._wait_for_room()
            return False
        except OSError:
            self._break()
            return False
        return True

    def _release(self) -> None:
        """Give the pipe back unless the sink still has to take its bytes."""
        if self._pipe and (self.done or not self._pipe.held):
            self._pump.pipes.give(self._pipe)
            self._pipe = None

    def _wait_for_room(self) -> None:
        self._wake.stop()
        if self._room is None:
            self._room = self._pump.loop.io(self.sink.fileno(), WRITE)
        self._room.start(self._writable)

    def _writable(self) -> None:
        if self._rest:
            sent = self._send(self._rest)
            if sent is None:
                return
            self._rest = self._rest[sent:]
        if self._pipe:
            self._empty(self._pipe)
            self._release()
        if not (self.done or self._rest or self._pipe):
            self._room.stop()
            self._wake.start(self._readable)

    def _end(self) -> None:
        """The source has said all: tell the sink, unless the sink is known to be gone."""
        self.stop()
        self._pair.ended(self)

    def _break(self) -> None:
        """The sink takes nothing any more; what it sent before that is still on its way."""
        self.stop()
        self._pair.broke(self)

    def stop(self) -> None:
        """Stop watching and drop what is held."""
        if self.done:
            return
        self.done = True
        for watcher in (self._wake, self._room):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._rest = b""
        # A pipe in use by _splice is given back there.
        if self._pipe and self._pipe.held:
            self._pump.pipes.give(self._pipe)
            self._pipe = None


class Pair:
    """Two joined sockets; ``ended`` is called once when both are closed."""

    __slots__ = ("_broken", "_halves", "_on_end", "_patience", "_pump", "_socks")

    def __init__(
        self,
        pump: Pump,
        one: socket.socket,
        other: socket.socket,
        on_end: Callable[[], None],
    ) -> None:
        self._pump = pump
        self._on_end = on_end
        self._broken = False
        self._patience: Any = None
        self._socks = (one, other)
        for sock in self._socks:
            for option in _KEEPALIVE:
                sock.setsockopt(*option)
        self._halves = (Half(pump, self, one, other), Half(pump, self, other, one))

    def ended(self, half: Half) -> None:
        """A half came to its end of stream."""
        if self._broken:
            self.abort(half.sink)
            return
        try:
            half.sink.shutdown(socket.SHUT_WR)
        except OSError:
            # The sink was reset meanwhile; so must the source be, after its data.
            self.broke(half)
            return
        if all(h.done for h in self._halves):
            self._finish()
            for sock in self._socks:
                sock.close()

    def broke(self, half: Half) -> None:
        """The sink of a half is gone: let the other half run out, then reset the source."""
        self._broken = True
        if all(h.done for h in self._halves):
            self.abort(half.source)
        elif self._patience is None:
            # A source that does not read would never let the other half run out.
            self._patience = self._pump.loop.timer(RESET_PATIENCE)
            self._patience.start(self.abort, half.source)

    def abort(self, survivor: socket.socket) -> None:
        """Reset ``survivor`` once it was sent all that is queued for it; close the other."""
        self._finish()
        for sock in self._socks:
            if sock is survivor:
                self._pump.reset_when_sent(sock)
            else:
                reset(sock)

    def close(self) -> None:
        """Reset both at once."""
        self._finish()
        for sock in self._socks:
            reset(sock)

    def _finish(self) -> None:
        for half in self._halves:
            half.stop()
        if self._patience is not None:
            self._patience.stop()
            self._patience.close()
        self._pump.forget(self)
        self._on_end()


class Joiner(Protocol):
    """Whatever joins connections: Pump, or the workers' pumps."""

    def join(
        self, one: socket.socket, other: socket.socket, on_end: Callable[[], None]
    ) -> None:
        """As Pump.join."""


class Pump:
    """All joined pairs of one event loop."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.view = memoryview(bytearray(COPY_SIZE))
        self.pipes = Pipes()
        self._pairs: set[Pair] = set()
        self._leaving: dict[socket.socket, Any] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def join(
        self, one: socket.socket, other: socket.socket, on_end: Callable[[], None]
    ) -> None:
        """Own two connected non-blocking sockets from now on; ``on_end`` when both are closed."""
        self._pairs.add(Pair(self, one, other, on_end))

    def forget(self, pair: Pair) -> None:
        """A pair has come to its end."""
        self._pairs.discard(pair)

    def reset_when_sent(self, sock: socket.socket) -> None:
        """Reset a connection, but not before its peer has what was sent to it.

        A reset drops the kernel's send queue, which the peer of a direct connection would
        have received.
        """
        if not _unsent(sock):
            reset(sock)
            return
        timer = self.loop.timer(RESET_POLL, RESET_POLL)
        self._leaving[sock] = timer
        polls = [int(RESET_PATIENCE / RESET_POLL)]

        def poll() -> None:
            polls[0] -= 1
            if polls[0] <= 0 or not _unsent(sock):
                self._leave(sock)

        timer.start(poll)

    def _leave(self, sock: socket.socket) -> None:
        timer = self._leaving.pop(sock)
        timer.stop()
        timer.close()
        reset(sock)

    def close(self) -> None:
        """Reset everything."""
        for pair in list(self._pairs):
            pair.close()
        for sock in list(self._leaving):
            self._leave(sock)
        self.pipes.close()


def _unsent(sock: socket.socket) -> int:
    """Return the bytes that the peer has not acknowledged."""
    try:
        buffer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except OSError:
        return 0
    return int(struct.unpack("i", buffer)[0])
