"""Connections that wait at a broker until their client is called: kept, taken, refused, over."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from brokerd.limits import Bounds, Held, Limits
from brokerd.parking import MOST_OF_ONE, PATIENCE, Parking
from brokerd.registry import Refusal
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import Key, Keyring
from gcbpatch.wire.codec import HEADER_SIZE, Frame, Kind, message_of, parse
from gcbpatch.wire.messages import Command, Join, Park

from .broker_client import HANG_S, Broker, Client, Refused, read_all, read_frame
from .broker_ground import ALICE, BOB, LISTENER, TOKENS, greeted, is_closed, refusal, wait_until


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> str:
    """How many; tests that ask for it run with and without."""
    return str(getattr(request, "param", 1))


with_workers = pytest.mark.parametrize("workers", [1, 2], indirect=True, ids=["alone", "workers"])


@pytest.fixture
def broker(tmp_path: Path, workers: str) -> Iterator[Broker]:
    broker = Broker(tmp_path, "--workers", workers, "--log", "INFO")
    yield broker
    broker.kill()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """With tokens, and room for two connections, one of each token."""
    tokens, config = tmp_path / "tokens", tmp_path / "broker.toml"
    tokens.write_text(TOKENS)
    config.write_text("[limits]\nparked = 2\ntoken_parked = 1\n")
    broker = Broker(tmp_path, "--token-file", str(tokens), "--config", str(config))
    yield broker
    broker.kill()


@with_workers
def test_what_waits_becomes_the_half_that_is_called_for(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        waiting = alice.park(LISTENER)
        alice.park_again(waiting, LISTENER)
        with socket.create_connection(proxy.address, HANG_S) as one:
            one.sendall(b"there")
            with alice.join_on(waiting, alice.next_call()) as other:
                assert other.recv(5, socket.MSG_WAITALL) == b"there"
                other.sendall(b"and back")
                other.shutdown(socket.SHUT_WR)
                assert read_all(one) == b"and back"


@with_workers
def test_a_connector_may_wait_as_well_and_the_bytes_behind_join_are_the_streams(
    broker: Broker,
) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        proxy = alice.register(LISTENER).proxy
        bob.register(LISTENER)
        ahead = bob.park(LISTENER)
        meeting = bob.connect(proxy)
        ahead.sendall(bob.join_frame(meeting.rendezvous, meeting.secret, False) + b"early")
        with alice.join_on(alice.park(LISTENER), alice.next_call()) as other:
            assert other.recv(5, socket.MSG_WAITALL) == b"early"
            bob.finish_join(ahead).close()


def test_to_wait_gives_no_right_to_a_connection(broker: Broker) -> None:
    """Whoever plays a PARK back waits as its client does; JOIN needs the secret of the CALL."""
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        said = alice.request(Command.PARK, Park(alice.client, LISTENER))
        with socket.create_connection(broker.address, HANG_S) as thief:
            thief.sendall(said)
            assert read_frame(thief).status == Status.SUCCESS
            with socket.create_connection(proxy.address, HANG_S) as one:
                call = alice.next_call()
                forged = Join(call.rendezvous, True, bytes(16))
                thief.sendall(alice.request(Command.JOIN, forged))
                reply = read_frame(thief)
                assert (reply.status, reply.body) == (Status.NOT_AUTHORIZED, b"")
                assert is_closed(thief)
                one.sendall(b"for alice")
                with alice.join(call) as other:
                    assert other.recv(9, socket.MSG_WAITALL) == b"for alice"


@pytest.mark.parametrize("command", [Command.HELLO, Command.OPEN, Command.REGISTER])
def test_nothing_else_is_taken_where_something_waits(broker: Broker, command: Command) -> None:
    with greeted(broker) as alice:
        alice.register(LISTENER)
        with alice.park(LISTENER) as waiting:
            frame = bytearray(alice.request(Command.PARK, Park(alice.client, LISTENER)))
            frame[4] = command
            waiting.sendall(frame)
            assert read_frame(waiting).status == Status.UNSUPPORTED
            assert is_closed(waiting)


@pytest.mark.parametrize(
    "garbage",
    [bytes(HEADER_SIZE), b"GB\x01\x01/\0\xff\xff" + bytes(12)],
    ids=["no header", "too long"],
)
def test_garbage_ends_the_waiting(broker: Broker, garbage: bytes) -> None:
    with greeted(broker) as alice:
        alice.register(LISTENER)
        with alice.park(LISTENER) as waiting:
            waiting.sendall(garbage)
            assert is_closed(waiting)


def test_who_has_no_listener_here_does_not_wait_here(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        alice.register(LISTENER)
        assert refusal(bob.park, LISTENER) is Status.UNKNOWN
        waiting = alice.park(LISTENER)
        alice.unregister(LISTENER)
        assert refusal(alice.park_again, waiting, LISTENER) is Status.UNKNOWN


def test_a_connection_waits_for_one_client_only(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        alice.register(LISTENER)
        bob.register(LISTENER)
        waiting = alice.park(LISTENER)
        assert refusal(bob.park_again, waiting, LISTENER) is Status.NOT_AUTHORIZED


def test_only_so_many_wait_for_one_client(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        waiting = [alice.park(LISTENER) for _ in range(MOST_OF_ONE)]
        alice.park_again(waiting[0], LISTENER)
        waiting.append(alice.park(LISTENER))
        assert is_closed(waiting[1]), "the one that was silent longest"
        with socket.create_connection(proxy.address, HANG_S):
            alice.join_on(waiting[0], alice.next_call())


def test_tokens_are_needed_and_counted(guarded: Broker) -> None:
    with (
        greeted(guarded, ALICE) as alice,
        greeted(guarded, BOB, client=alice.client) as bob,
        greeted(guarded, ALICE) as stranger,
    ):
        alice.register(LISTENER)
        stranger.key = None
        assert refusal(stranger.park, LISTENER) is Status.NOT_AUTHORIZED
        assert refusal(bob.park, LISTENER) is Status.NOT_AUTHORIZED
        with alice.park(LISTENER):
            assert refusal(alice.park, LISTENER) is Status.QUOTA_EXCEEDED
        wait_until(lambda: _parks(alice))


def _parks(client: Client) -> bool:
    with contextlib.suppress(Refused), client.park(LISTENER):
        return True
    return False


def test_a_restart_ends_the_waiting_and_nothing_else(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with greeted(broker) as alice:
        alice.register(LISTENER)
        with alice.park(LISTENER) as waiting:
            broker.kill()
            assert is_closed(waiting)
        again = Broker(tmp_path, host=broker.host, port=broker.address[1])
        try:
            assert refusal(alice.park, LISTENER) is Status.UNKNOWN
            alice.hello()
            alice.register(LISTENER)
            alice.park(LISTENER).close()
        finally:
            again.kill()


@with_workers
def test_who_waits_is_not_waited_for(broker: Broker) -> None:
    """A draining broker takes nobody new, uses those that wait, and ends in spite of them."""
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        waiting, other = alice.park(LISTENER), alice.park(LISTENER)
        broker.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "draining" in broker.log())
        assert refusal(alice.park, LISTENER) is Status.NO_RESOURCES
        with socket.create_connection(proxy.address, HANG_S):
            alice.join_on(waiting, alice.next_call()).close()
        alice.unregister(LISTENER)
        assert broker.process.wait(HANG_S) == 0
        assert is_closed(other)


class Yard:
    """A Parking of this process, with connections of it."""

    def __init__(self) -> None:
        self.limits = Limits(Bounds())
        self.left: list[Frame] = []
        self.parking = Parking(
            gevent.get_hub().loop, self.limits, self.granted, lambda peer, error: None
        )
        self.parking.leave = self.leave
        self.door = socket.create_server(("127.0.0.1", 0))
        self.keyring = Keyring()

    def granted(
        self, frame: Frame, peer: Address, via: str, now: float
    ) -> tuple[Park, Key | None]:
        asked = message_of(frame)
        assert isinstance(asked, Park)
        if asked.listener != LISTENER:
            raise Refusal(Status.UNKNOWN, "another listener")
        return asked, self.keyring.authenticate(frame)

    def leave(self, sock: socket.socket, peer: Address, frame: Frame) -> None:
        sock.close()

    def enter(self, frame: bytes, now: float) -> socket.socket:
        one = socket.create_connection(self.door.getsockname(), HANG_S)
        other, peer = self.door.accept()
        other.setblocking(False)
        self.parking.enter(other, peer, parse(frame), now)
        return one


def test_who_is_silent_is_forgotten_with_all_that_was_known_of_him() -> None:
    yard = Yard()
    with yard.door:
        asked = Park(os.urandom(16), LISTENER)
        frame = auth.sealed(None, Kind.REQUEST, Command.PARK, 0, asked)
        one, other = yard.enter(frame, 0.0), yard.enter(frame, 10.0)
        yard.parking.tick(PATIENCE - 0.001)
        assert len(yard.parking) == yard.limits.held(Held.PARKED) == 2
        yard.parking.tick(PATIENCE)
        assert len(yard.parking) == 1
        with one:
            assert read_frame(one).status == Status.SUCCESS
            assert is_closed(one)
        yard.parking.tick(PATIENCE + 10.0)
        assert yard.limits.held(Held.PARKED) == len(yard.parking) == len(yard.parking._of) == 0
        other.close()
