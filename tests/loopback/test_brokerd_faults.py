"""The real brokerd on loopback: bad input and faults, and what must not be harmed by them."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key
from gcbpatch.wire.codec import HEADER_SIZE, Kind, build, parse
from gcbpatch.wire.datagrams import CONTROL_BIT
from gcbpatch.wire.messages import Command, Connect, Endpoint, Hello

from .broker_client import (
    HANG_S,
    Broker,
    Client,
    Refused,
    read_all,
    read_frame,
)
from .broker_ground import (
    ALICE,
    BOB,
    LISTENER,
    greeted,
    is_closed,
    parse_connect,
    refusal,
    udp_to,
    wait_until,
)

# --- datagrams

GARBAGE = [
    b"",
    b"G",
    b"GB",
    os.urandom(HEADER_SIZE - 1),
    b"XX" + bytes(HEADER_SIZE),
    b"\xff" * 1400,
    build(Kind.REPLY, Command.CALL, 1),
    build(Kind.REPLY, Command.HELLO, 1)[:-1] + b"\x01",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_what_cannot_be_read_is_not_answered(broker: Broker, garbage: bytes) -> None:
    hello = build(Kind.REQUEST, Command.HELLO, 7, Hello(bytes(16)))
    with udp_to(broker.address) as sock:
        sock.send(garbage)
        sock.send(garbage)
        sock.send(hello)
        # Answers come in order: a first one to the HELLO means none to the garbage.
        assert parse(sock.recv(2048)).transaction == 7
        port = sock.getsockname()[1]
    assert broker.log().count(f"127.0.0.1:{port}: ") <= 1
    # With the first bit set it is a datagram of a program's: one of nobody's is passed over.
    if garbage and garbage[3:4] != b"\x02" and garbage[0] < CONTROL_BIT:
        assert f"127.0.0.1:{port}: " in broker.log()


def changed(frame: bytes, offset: int, value: int) -> bytes:
    return frame[:offset] + bytes([value]) + frame[offset + 1 :]


HELLO = build(Kind.REQUEST, Command.HELLO, 5, Hello(bytes(16)))
BAD = {
    "another version": (changed(HELLO, 2, 9), Status.UNSUPPORTED),
    "no kind": (changed(HELLO, 3, 7), Status.MALFORMED),
    "truncated": (HELLO[:-1], Status.MALFORMED),
    "longer than it says": (HELLO + b"x", Status.MALFORMED),
    "a body that is none": (build(Kind.REQUEST, Command.HELLO, 5), Status.MALFORMED),
    "an unknown command": (build(Kind.REQUEST, 99, 5), Status.UNSUPPORTED),
    "a command of the other daemon": (build(Kind.REQUEST, Command.QUERY, 5), Status.UNSUPPORTED),
    "a JOIN as a datagram": (build(Kind.REQUEST, Command.JOIN, 5), Status.UNSUPPORTED),
    "a HELLO without padding": (
        build(Kind.REQUEST, Command.HELLO, 5, Hello(bytes(16), b"")),
        Status.MALFORMED,
    ),
    "a wrong cookie": (
        build(Kind.REQUEST, Command.CONNECT, 5,
              Connect(bytes(16), bytes(8), Endpoint("10.0.0.1", 1), 6, [], "")),
        Status.STALE_EPOCH,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_bare_status_not_larger_than_they_are(
    broker: Broker, case: str
) -> None:
    datagram, status = BAD[case]
    with udp_to(broker.address) as sock:
        for _ in range(2):
            sock.send(datagram)
            answer = sock.recv(2048)
            frame = parse(answer)
            assert (frame.kind, frame.transaction, frame.status) == (Kind.REPLY, 5, status)
            assert len(answer) == HEADER_SIZE <= len(datagram)
        line = f"127.0.0.1:{sock.getsockname()[1]}: "
    assert broker.log().count(line) == (0 if status is Status.STALE_EPOCH else 1)


def test_a_hello_is_never_answered_with_more_than_it_said(guarded: Broker) -> None:
    for key in (ALICE, None):
        for padding in (0, 16, 32, 64, 256):
            request = build(
                Kind.REQUEST, Command.HELLO, padding, Hello(bytes(16), bytes(padding)),
                key_id=key.key_id if key else 0,
            )
            request = key.seal(request) if key else request
            with udp_to(guarded.address) as sock:
                sock.send(request)
                assert len(sock.recv(2048)) <= len(request)


def test_the_same_datagram_gets_the_same_bytes_and_one_call(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        asked = alice.request(Command.REGISTER, alice.register_request())
        registered = alice.exchange(asked)
        assert alice.exchange(asked) == registered
        proxy = parse(registered)
        assert proxy.status == Status.SUCCESS
        target = alice.register(LISTENER).proxy
        connect = bob.request(
            Command.CONNECT, Connect(bob.client, bob.cookie, target, 6, [], "")
        )
        first = bob.exchange(connect)
        assert [bob.exchange(connect) for _ in range(5)] == [first] * 5
        # Of the calls that come, the first is the first connect's, the next the second's.
        meetings = [parse_connect(first), bob.connect(target).rendezvous]
        assert [alice.next_call().rendezvous for _ in meetings] == meetings
        assert len(alice.called) == 2


# --- tokens


def test_tokens_are_asked_for(guarded: Broker) -> None:
    assert "no tokens" not in guarded.log()
    with Client(guarded.address) as stranger:
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        line = f"127.0.0.1:{stranger.sock.getsockname()[1]}: no token where one is needed"
    with Client(guarded.address, Key(b"a wrong token")) as stranger:
        assert refusal(stranger.hello) is Status.NOT_AUTHORIZED
        port = stranger.sock.getsockname()[1]
        wrong = f"127.0.0.1:{port}: a wrong token"
    assert guarded.log().count(line) == 1
    assert guarded.log().count(wrong) == 1


def test_a_listener_belongs_to_its_token(guarded: Broker) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB, alice.client) as mallory:
        proxy = alice.register(LISTENER).proxy
        assert refusal(mallory.register, LISTENER) is Status.NOT_AUTHORIZED
        assert refusal(mallory.refresh, LISTENER) is Status.NOT_AUTHORIZED
        assert refusal(mallory.unregister, LISTENER) is Status.NOT_AUTHORIZED
        assert alice.register(LISTENER).proxy == proxy


def test_a_relay_between_two_tokens(guarded: Broker) -> None:
    with greeted(guarded, ALICE) as alice, greeted(guarded, BOB) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        call = alice.next_call()
        with Client(guarded.address) as stranger:
            assert refusal(stranger.join, call) is Status.NOT_AUTHORIZED
        half = bob.start_join(meeting)
        with alice.join(call) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"hello")
            assert listener.recv(5, socket.MSG_WAITALL) == b"hello"


def test_tokens_are_reread_on_sighup(guarded: Broker, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("carol carols-token\n")
    guarded.process.send_signal(signal.SIGHUP)
    with Client(guarded.address, Key(b"carols-token")) as carol:

        def accepted() -> bool:
            try:
                carol.hello()
            except Refused:
                return False
            return True

        wait_until(accepted)
        (tmp_path / "tokens").write_text("")
        guarded.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "settings not reread" in guarded.log())
        carol.hello()
    with Client(guarded.address, ALICE) as alice:
        assert refusal(alice.hello) is Status.NOT_AUTHORIZED


def test_a_broker_without_tokens_says_so(broker: Broker) -> None:
    assert "no tokens are configured" in broker.log()


# --- relayed halves


def test_a_bad_join_harms_nothing(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        call = alice.next_call()
        for name, secret, status in (
            (call.rendezvous, bytes(16), Status.NOT_AUTHORIZED),
            (bytes(8), call.secret, Status.UNKNOWN),
        ):
            for listening in (True, False):
                with socket.create_connection(broker.address, HANG_S) as sock:
                    sock.sendall(alice.join_frame(name, secret, listening) + b"and more")
                    assert read_frame(sock).status == status
                    assert read_all(sock) == b""
                    assert f"127.0.0.1:{sock.getsockname()[1]}: JOIN" in broker.log()
        half = bob.start_join(meeting)
        with alice.join(call) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"unharmed")
            assert listener.recv(8, socket.MSG_WAITALL) == b"unharmed"
            assert refusal(alice.join, call) is Status.UNKNOWN
            assert refusal(bob.join, meeting) is Status.UNKNOWN


def test_a_side_is_used_once(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        # Two JOINs of one side: whichever is first is the one; the other is refused.
        second = bob.start_join(meeting)
        replies = []
        for sock in (half, second):
            sock.setblocking(False)
        wait_until(lambda: _any_reply((half, second), replies))
        assert [frame.status for frame in replies] == [Status.UNKNOWN]


def _any_reply(socks: tuple[socket.socket, ...], replies: list) -> bool:
    for sock in socks:
        try:
            data = sock.recv(HEADER_SIZE)
        except BlockingIOError:
            continue
        if data:
            replies.append(parse(data))
    return bool(replies)


FIRST_FRAMES = {
    "garbage": (os.urandom(8) + b"\xff" * 100, None),
    "another version": (changed(HELLO, 2, 9), Status.UNSUPPORTED),
    "too large": (HELLO[:6] + b"\xff\xff" + HELLO[8:], Status.MALFORMED),
    "a REFRESH before HELLO": (build(Kind.REQUEST, Command.REFRESH, 5), Status.UNSUPPORTED),
    "a JOIN that is none": (build(Kind.REQUEST, Command.JOIN, 5, Hello(bytes(16))),
                            Status.MALFORMED),
}


@pytest.mark.parametrize("case", FIRST_FRAMES)
def test_bad_first_frames_are_refused(broker: Broker, case: str) -> None:
    data, status = FIRST_FRAMES[case]
    with socket.create_connection(broker.address, HANG_S) as sock:
        sock.sendall(data)
        if status is not None:
            assert read_frame(sock).status == status
        assert read_all(sock) == b""
        assert f"127.0.0.1:{sock.getsockname()[1]}: " in broker.log()


def test_connections_that_say_nothing_do_not_keep_others_out(broker: Broker) -> None:
    idle = [socket.create_connection(broker.address, HANG_S) for _ in range(1100)]
    for sock in idle[::2]:
        sock.sendall(HELLO[:7])
    # The oldest had to go.
    assert is_closed(idle[0])
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        with alice.join(alice.next_call()) as listener, bob.finish_join(half) as connector:
            connector.sendall(b"through")
            assert listener.recv(7, socket.MSG_WAITALL) == b"through"
    # And in the end all of them: they are read to their end of stream.
    for sock in idle:
        with sock:
            assert is_closed(sock)


@pytest.mark.parametrize("answer", [Status.NO_RESOURCES, Status.UNKNOWN])
def test_a_refused_call_is_told_to_the_connector(broker: Broker, answer: Status) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        proxy = alice.register(LISTENER).proxy
        alice.call_status = answer
        for early in (True, False):
            meeting = bob.connect(proxy)
            if early:
                half = bob.start_join(meeting)
                alice.next_call()
            else:
                alice.next_call()
                half = bob.start_join(meeting)
            assert refusal(bob.finish_join, half) is answer


def test_an_ordinary_connection_is_reset_when_the_listener_refuses(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        alice.call_status = Status.NO_RESOURCES
        with (
            # The reset may come so early that connect itself reports it.
            pytest.raises(ConnectionResetError),
            socket.create_connection(proxy.address, HANG_S) as sock,
        ):
            sock.recv(1)


def test_connections_to_a_listener_that_is_dead_are_not_kept_waiting(broker: Broker) -> None:
    with greeted(broker) as bob:
        alice = greeted(broker)
        proxy = alice.register(LISTENER).proxy
        alice.close()
        half = bob.start_join(bob.connect(proxy))
        with (
            # The reset may come so early that connect itself reports it.
            pytest.raises(ConnectionResetError),
            socket.create_connection(proxy.address, HANG_S) as sock,
        ):
            sock.recv(1)
        assert refusal(bob.finish_join, half) is Status.UNKNOWN


def test_a_half_that_never_gets_its_other_is_told_so(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        bob.connect(alice.register(LISTENER).proxy)
        assert refusal(alice.join, alice.next_call()) is Status.UNKNOWN


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_half_that_vanished_is_noticed(broker: Broker, end: str) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        proxy = alice.register(LISTENER).proxy
        meeting = bob.connect(proxy)
        call = alice.next_call()
        half = bob.start_join(meeting, behind=b"go")
        if end == "reset":
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Its bytes must be there before it goes, or a reset may overtake the JOIN.
        bob.hello()
        half.close()
        assert refusal(alice.join, call) is Status.UNKNOWN


def test_an_ordinary_connection_that_was_reset_is_noticed(broker: Broker) -> None:
    with greeted(broker) as alice:
        proxy = alice.register(LISTENER).proxy
        sock = socket.create_connection(proxy.address, HANG_S)
        call = alice.next_call()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        assert refusal(alice.join, call) is Status.UNKNOWN




def test_a_join_that_comes_byte_by_byte_is_a_join(broker: Broker) -> None:
    with greeted(broker) as alice, greeted(broker) as bob:
        meeting = bob.connect(alice.register(LISTENER).proxy)
        half = bob.start_join(meeting)
        call = alice.next_call()
        frame = alice.join_frame(call.rendezvous, call.secret, listening=True)
        with socket.create_connection(broker.address, HANG_S) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in frame + b"x":
                listener.send(bytes([byte]))
            assert read_frame(listener).status == Status.SUCCESS
            assert bob.finish_join(half).recv(1) == b"x"
