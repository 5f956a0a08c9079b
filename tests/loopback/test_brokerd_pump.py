"""The byte pump on real connections, with events in an order that is chosen here.

An event loop reports what happened in any order; each must come out the same.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from brokerd.pump import COPY_SIZE, READ, WRITE, Pump

HANG_S = 60.0


class Watcher:
    """What an event loop would call when something happens."""

    def __init__(self) -> None:
        self.callback: Callable[[], None] | None = None

    def start(self, callback: Callable[..., None], *args: object) -> None:
        self.callback = lambda: callback(*args)

    def stop(self) -> None:
        self.callback = None

    def close(self) -> None:
        assert self.callback is None, "closed while it is watched"


class Loop:
    """Events happen when a test says so, and only if somebody watches and they are true."""

    def __init__(self) -> None:
        self.watchers: dict[tuple[int, int], Watcher] = {}
        self.timers: list[Watcher] = []

    def io(self, fd: int, events: int) -> Watcher:
        return self.watchers.setdefault((fd, events), Watcher())

    def timer(self, *seconds: float) -> Watcher:
        self.timers.append(Watcher())
        return self.timers[-1]

    def report(self, sock: socket.socket, events: int, wait_ms: float = 0.0) -> bool:
        """Report an event if it is watched and true; return whether it was."""
        watcher = self.watchers.get((sock.fileno(), events))
        if watcher is None or watcher.callback is None:
            return False
        poll = select.poll()
        poll.register(sock, {READ: select.POLLIN, WRITE: select.POLLOUT}[events])
        if not poll.poll(wait_ms):
            return False
        watcher.callback()
        return True

    def happens(self, sock: socket.socket, events: int) -> None:
        """Wait until it is true, then report it."""
        assert self.report(sock, events, HANG_S * 1000), "it did not happen"


class Ends:
    """A pumped pair: ``a`` and ``b`` are the far ends, ``near_a`` and ``near_b`` the pump's."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pump = Pump(self.loop)
        self.ended = 0
        self.a, self.near_a = tcp_pair()
        self.b, self.near_b = tcp_pair()
        self.pump.join(self.near_a, self.near_b, self.on_end)

    def on_end(self) -> None:
        self.ended += 1

    def close(self) -> None:
        self.pump.close()
        for sock in (self.a, self.b):
            sock.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname(), HANG_S)
        near, _ = server.accept()
    near.setblocking(False)
    return far, near


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def send_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(ends: Ends) -> None:
    """Let ``a`` send until the pump holds what ``b`` does not take."""
    ends.a.setblocking(False)
    watcher = ends.loop.watchers[ends.near_a.fileno(), READ]
    while watcher.callback is not None:
        with contextlib.suppress(BlockingIOError):
            ends.a.send(bytes(1 << 20))
        ends.loop.report(ends.near_a, READ)
    ends.a.setblocking(True)
    ends.a.settimeout(HANG_S)


@pytest.mark.parametrize("first", ["near_a", "near_b"])
def test_a_reset_is_a_reset_whichever_side_is_looked_at_first(ends: Ends, first: str) -> None:
    ends.b.sendall(b"answer")
    send_reset(ends.b)
    ends.a.sendall(b"more")
    order = [ends.near_a, ends.near_b] if first == "near_a" else [ends.near_b, ends.near_a]
    while not ends.ended:
        for sock in order:
            if not ends.ended:
                ends.loop.report(sock, READ)
    assert ends.ended == 1
    assert len(ends.pump) == 0
    for timer in ends.loop.timers:
        if timer.callback:
            timer.callback()
    received = b""
    with pytest.raises(ConnectionResetError):
        while True:
            chunk = ends.a.recv(100)
            assert chunk, "an end of stream where a reset was"
            received += chunk
    assert received in (b"answer", b"")


def test_the_answer_is_not_lost_to_a_write_that_failed(ends: Ends) -> None:
    ends.b.sendall(b"answer")
    send_reset(ends.b)
    ends.a.sendall(b"more")
    # The write to b fails first; what b had said is still read, and then comes the reset.
    ends.loop.happens(ends.near_a, READ)
    assert not ends.ended
    ends.loop.happens(ends.near_b, READ)
    assert ends.a.recv(6, socket.MSG_WAITALL) == b"answer"
    ends.loop.happens(ends.near_b, READ)
    assert ends.ended == 1
    with pytest.raises(ConnectionResetError):
        ends.a.recv(1)


def test_a_reset_while_the_pump_holds_bytes(ends: Ends) -> None:
    fill(ends)
    send_reset(ends.b)
    ends.loop.happens(ends.near_b, WRITE)
    assert not ends.ended
    ends.loop.happens(ends.near_b, READ)
    assert ends.ended == 1


def test_a_source_that_does_not_read_is_not_waited_for_for_ever(ends: Ends) -> None:
    fill(ends)
    send_reset(ends.b)
    ends.loop.happens(ends.near_b, WRITE)
    (timer,) = ends.loop.timers
    assert timer.callback
    timer.callback()
    assert ends.ended == 1


def test_nothing_is_read_while_the_other_side_takes_nothing(ends: Ends) -> None:
    fill(ends)
    assert ends.loop.watchers[ends.near_a.fileno(), READ].callback is None
    ends.b.setblocking(False)
    while ends.loop.watchers[ends.near_b.fileno(), WRITE].callback is not None:
        with contextlib.suppress(BlockingIOError):
            ends.b.recv(1 << 20)
        ends.loop.report(ends.near_b, WRITE)
    assert ends.loop.watchers[ends.near_a.fileno(), READ].callback is not None


@pytest.mark.parametrize("pipes", [True, False], ids=["spliced", "copied"])
@pytest.mark.parametrize("size", [COPY_SIZE - 1, COPY_SIZE, COPY_SIZE + 1, 5_000_000])
def test_sizes_around_the_change_of_method(
    ends: Ends, size: int, pipes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pipes:
        # As if there were no descriptors left.
        monkeypatch.setattr(ends.pump.pipes, "take", lambda: None)
    data = os.urandom(size)
    received = bytearray()
    sent = 0
    ends.a.setblocking(False)
    ends.b.setblocking(False)
    while len(received) < size:
        if sent < size:
            with contextlib.suppress(BlockingIOError):
                sent += ends.a.send(data[sent : sent + 300_000])
        for sock, events in ((ends.near_a, READ), (ends.near_b, WRITE)):
            ends.loop.report(sock, events)
        with contextlib.suppress(BlockingIOError):
            received += ends.b.recv(1 << 20)
    assert received == data
