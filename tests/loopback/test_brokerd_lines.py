"""The real brokerd on loopback: control over TCP, its limits, and what strangers may do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.codec import Frame, Kind, message_of
from gcbpatch.wire.messages import (
    TCP,
    Call,
    Command,
    Hello,
    HelloReply,
    Message,
    Refresh,
    Register,
    RegisterReply,
)

from .broker_client import HANG_S, Broker, read_frame
from .broker_ground import LISTENER, greeted, is_closed


class LineClient:
    """A client that speaks with its broker by TCP alone."""

    def __init__(self, broker: Broker) -> None:
        self.client = os.urandom(16)
        self.broker = broker
        self.calls: list[Frame] = []
        self.dial()

    def dial(self) -> None:
        self.sock = socket.create_connection(self.broker.address, HANG_S)
        reply = self.ask(Command.HELLO, Hello(self.client))
        message = message_of(reply)
        assert isinstance(message, HelloReply)
        assert message.observed.address == self.sock.getsockname()
        self.cookie = message.cookie

    def ask(self, command: Command, message: Message) -> Frame:
        transaction = int.from_bytes(os.urandom(8), "big")
        self.sock.sendall(auth.sealed(None, Kind.REQUEST, command, transaction, message))
        while (frame := read_frame(self.sock)).kind is Kind.REQUEST:
            self.calls.append(frame)
        assert frame.transaction == transaction
        return frame

    def register(self) -> RegisterReply:
        asked = Register(
            self.client, self.cookie, LISTENER, TCP, 0, b"nonce...", [], "", 30
        )
        reply = message_of(self.ask(Command.REGISTER, asked))
        assert isinstance(reply, RegisterReply)
        return reply

    def refresh(self) -> Frame:
        return self.ask(Command.REFRESH, Refresh(self.client, self.cookie, [LISTENER]))


@pytest.fixture
def line(broker: Broker) -> Iterator[LineClient]:
    made = LineClient(broker)
    yield made
    made.sock.close()


def test_a_call_comes_once_down_the_line(line: LineClient) -> None:
    proxy = line.register().proxy
    with socket.create_connection(proxy.address, HANG_S):
        frame = read_frame(line.sock)
        call = message_of(frame)
        assert isinstance(call, Call) and call.listener == LISTENER
        # Not answered for longer than a datagram would wait, and not said again.
        line.sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            line.sock.recv(1)


def test_a_call_that_found_no_line_comes_down_the_next(line: LineClient) -> None:
    proxy = line.register().proxy
    line.sock.close()
    with socket.create_connection(proxy.address, HANG_S):
        line.dial()
        assert line.refresh().status == Status.SUCCESS
        if not line.calls:
            line.calls.append(read_frame(line.sock))
        assert isinstance(message_of(line.calls[0]), Call)


def test_a_cookie_is_good_for_one_way_only(broker: Broker, line: LineClient) -> None:
    line.register()
    with greeted(broker) as other:
        line.cookie = other.cookie
    assert line.refresh().status == Status.STALE_EPOCH


def test_who_says_nothing_but_hello_is_turned_away(line: LineClient) -> None:
    assert is_closed(line.sock)


def test_a_client_that_goes_on_is_not(broker: Broker) -> None:
    idle, busy = LineClient(broker), LineClient(broker)
    busy.register()
    assert is_closed(idle.sock)
    assert busy.refresh().status == Status.SUCCESS
    for one in (idle, busy):
        one.sock.close()


GARBAGE = {
    "no frame": b"\xff" * 64,
    "too large a body": b"GB\x01\x01\x03\x00\xff\xff" + bytes(12),
    "a JOIN": auth.sealed(None, Kind.REQUEST, Command.JOIN, 7, Hello(bytes(16))),
    "an unknown command": auth.sealed(None, Kind.REQUEST, 99, 7),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_a_line_and_no_other(broker: Broker, line: LineClient, what: str) -> None:
    other = LineClient(broker)
    other.register()
    line.sock.sendall(GARBAGE[what])
    line.sock.settimeout(HANG_S)
    heard = b"".join(iter(lambda: _received(line.sock), b""))
    assert len(heard) <= 20
    assert other.refresh().status == Status.SUCCESS
    other.sock.close()


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except ConnectionResetError:
        return b""
