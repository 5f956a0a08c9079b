"""Whatever comes on a connection that waits: it is kept, handed on or ended, and then forgotten."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from hypothesis import given
from hypothesis import strategies as st

from brokerd.limits import Bounds, Held, Limits
from brokerd.parking import Parking
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import Frame, Kind, parse
from gcbpatch.wire.messages import TCP, Command, Park, Register
from tests.fuzz.ground import BROKER, HERE, NOW, SECRET, broker
from tests.fuzz.material import KEY, KEYRINGS, VALID, anything, fuzzed

CLIENT, LISTENER = bytes(range(16)), bytes(range(16, 32))
PARK = Park(CLIENT, LISTENER, bytes(16), 42100)
"""Of the document's example, so that what is made from that may be granted."""
ROUNDS = 1000


class Yard:
    """A real Parking over a real dispatcher; what leaves it is kept here."""

    def __init__(self, parking: Parking, door: socket.socket, key: Key | None) -> None:
        self.parking, self._door = parking, door
        self.first = auth.sealed(key, Kind.REQUEST, Command.PARK, 0, PARK)
        self.left: list[socket.socket] = []
        parking.leave = self._leave

    def _leave(self, sock: socket.socket, peer: Address, frame: Frame) -> None:
        assert (frame.kind, frame.command) != (Kind.REQUEST, Command.PARK)
        self.left.append(sock)

    def enter(self) -> tuple[socket.socket, socket.socket]:
        """Have one connection wait; return its other end, and it."""
        one = socket.create_connection(self._door.getsockname())
        other, peer = self._door.accept()
        other.setblocking(False)
        self.parking.enter(other, peer, parse(self.first), NOW)
        assert parse(one.recv(1000)).status == Status.SUCCESS
        return one, other

    def read(self, waiting: socket.socket) -> None:
        """Have all read that has come."""
        for _ in range(ROUNDS):
            if not len(self.parking) or not _unread(waiting):
                return
            self.parking.look(next(iter(self.parking)))
        raise AssertionError("it is not read to its end")


def _unread(sock: socket.socket) -> int:
    octets: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]
    return octets


@contextmanager
def yard(keyring: Keyring) -> Iterator[tuple[Yard, Limits]]:
    key = KEY if keyring else None
    limits = Limits(Bounds())
    with broker(keyring) as ground, socket.create_server(("127.0.0.1", 0)) as door:
        register = Register(
            CLIENT, auth.cookie(SECRET, HERE, NOW), LISTENER, TCP, 0, bytes(8), [], "", 30
        )
        data = auth.sealed(key, Kind.REQUEST, Command.REGISTER, 1, register)
        answer = ground.dispatcher.answer(parse(data), HERE, BROKER, NOW)
        assert answer is not None and parse(answer).status == Status.SUCCESS
        parking = Parking(
            gevent.get_hub().loop, limits, ground.dispatcher.park, lambda peer, error: None
        )
        made = Yard(parking, door, key)
        try:
            yield made, limits
        finally:
            parking.close()
            for sock in made.left:
                sock.close()


@fuzzed
@given(st.lists(anything, max_size=6), st.sampled_from(KEYRINGS), st.booleans())
def test_what_waits_is_kept_or_handed_on_or_ended(
    stream: list[bytes], keyring: Keyring, again: bool
) -> None:
    with yard(keyring) as (made, limits):
        one, waiting = made.enter()
        with one:
            said = (made.first if again else b"") + b"".join(stream)
            one.sendall(said)
            made.read(waiting)
            waits, ended = len(made.parking), waiting.fileno() < 0
            assert waits + len(made.left) + ended == 1
            assert limits.held(Held.PARKED) == waits
            assert not said or _heard(one) <= len(said)
        made.parking.tick(float("inf"))
        assert len(made.parking) == limits.held(Held.PARKED) == 0


def _heard(one: socket.socket) -> int:
    """How many octets have come, all that is on its way among it: this is one host."""
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        return len(one.recv(100_000))
    return 0


def test_the_parking_of_the_fuzz_keeps_and_hands_on() -> None:
    """Or the test above would show nothing about what lies behind the first PARK."""
    with yard(Keyring([KEY])) as (made, _):
        one, waiting = made.enter()
        with one:
            one.sendall(made.first)
            made.read(waiting)
            assert parse(one.recv(1000)).status == Status.SUCCESS
            one.sendall(next(data for data in VALID if parse(data).command == Command.JOIN))
            made.read(waiting)
            assert made.left == [waiting]
